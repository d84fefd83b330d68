import copy
import math

import pytest
import torch
from torch import nn

from vq_prior.core.errors import ArtifactError
from vq_prior.core.training import optim
from vq_prior.core.training.optim import (
    adamw,
    load_optimizer_tensors,
    lr_at,
    muon,
    optimizer_tensors,
    set_learning_rate,
)


def rate(step, **changes):
    return lr_at(step, **({"steps": 100, "peak": 2.0, "warmup_steps": 10, "decay_fraction": 0.2} | changes))


def test_a_cosine_falls_from_the_peak_along_half_a_period():
    assert [rate(step, schedule="cosine") for step in (4, 9)] == [1.0, 2.0]
    assert rate(10, schedule="cosine") == 2.0
    assert rate(55, schedule="cosine") == pytest.approx(1.0)
    assert rate(99, schedule="cosine") == pytest.approx(1 + math.cos(math.pi * 89 / 90))
    rates = [rate(step, schedule="cosine") for step in range(10, 130)]
    assert rates == sorted(rates, reverse=True)


def test_the_learning_rate_is_a_trapezoid():
    assert [rate(step) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert {rate(step) for step in range(10, 81)} == {2.0}
    assert [rate(step) for step in (90, 99, 100)] == pytest.approx([1.0, 0.1, 0.0])


def test_without_warmup_or_decay_the_rate_is_constant():
    assert {rate(step, warmup_steps=0, decay_fraction=0.0) for step in range(100)} == {2.0}


@pytest.mark.parametrize(("warmup_steps", "decay_fraction"), [(0, 1.0), (100, 1.0), (300, 0.5), (1, 0.01)])
def test_no_step_trains_at_zero_or_above_the_peak(warmup_steps, decay_fraction):
    rates = [rate(step, warmup_steps=warmup_steps, decay_fraction=decay_fraction) for step in range(100)]
    assert min(rates) > 0
    assert max(rates) <= 2.0


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))


def optimizer_of(module):
    return adamw(module.parameters(), learning_rate=1e-2, weight_decay=0.1, betas=(0.9, 0.99))


def train(module, optimizer, steps):
    for step in steps:
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        module(x).square().sum().backward()
        optimizer.step()


def test_only_matrices_decay():
    module = network()
    module[0].weight.requires_grad_(False)
    groups = {group["weight_decay"]: group["params"] for group in optimizer_of(module).param_groups}
    assert [p.shape for p in groups[0.1]] == [(2, 8)]
    assert all(p.ndim == 1 for p in groups[0.0])
    assert len(groups[0.0]) == 4


def muon_of(module):
    return muon([p for p in module.parameters() if p.ndim == 2], learning_rate=1e-2, weight_decay=0.1)


@pytest.mark.parametrize("optimizer_of", [optimizer_of, muon_of])
def test_a_loaded_optimiser_continues_bit_by_bit(optimizer_of):
    module = network()
    optimizer = optimizer_of(module)
    train(module, optimizer, range(3))
    saved, weights = optimizer_tensors(optimizer, module), copy.deepcopy(module.state_dict())
    train(module, optimizer, range(3, 6))

    resumed = network()
    resumed.load_state_dict(weights)
    other = optimizer_of(resumed)
    load_optimizer_tensors(other, resumed, saved, "here")
    train(resumed, other, range(3, 6))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


@pytest.mark.parametrize("native", [True, False])
def test_muon_steps_a_kernel_as_the_matrix_of_its_first_axis_and_all_others(native, monkeypatch):
    """To the bit where the machine multiplies in bfloat16; elsewhere in float32, 2% of a step away from torch's own."""
    monkeypatch.setattr(optim, "has_native_bf16", lambda _: native)
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    settings = {"lr": 1e-2, "weight_decay": 0.1, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    ours, torchs = muon([kernel], learning_rate=1e-2, weight_decay=0.1), torch.optim.Muon([matrix], **settings)
    for step in range(4):
        gradient = torch.randn(8, 4, 3, 3)
        matrix.grad = gradient.flatten(1)
        kernel.grad = gradient.to(memory_format=torch.channels_last) if step % 2 == 0 else gradient
        before = matrix.detach().clone()
        ours.step()
        torchs.step()
        if native:
            assert torch.equal(kernel.flatten(1), matrix)
        else:
            assert (kernel.flatten(1) - matrix).norm() < 0.02 * (matrix - before).norm() * (step + 1)


@pytest.mark.parametrize("shape", [(8, 36), (36, 8), (12, 12)])
def test_the_iteration_of_muon_is_the_polynomial_of_singular_values(shape):
    """U p(p(...S)) V' of the singular values, in float64 by an exact decomposition."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    coefficients = torch.optim.Muon([nn.Parameter(matrix)]).param_groups[0]["ns_coefficients"]
    U, S, V = torch.linalg.svd(matrix.double() / matrix.double().norm(), full_matrices=False)
    for _ in range(5):
        S = coefficients[0] * S + coefficients[1] * S**3 + coefficients[2] * S**5
    found = optim.orthogonalised(matrix, coefficients, 5, 1e-7)
    torch.testing.assert_close(found.double(), U @ torch.diag(S) @ V, atol=1e-5, rtol=0)


def test_saved_state_does_not_move_with_the_training():
    module = network()
    optimizer = optimizer_of(module)
    train(module, optimizer, range(2))
    saved = optimizer_tensors(optimizer, module)
    before = {name: tensor.clone() for name, tensor in saved.items()}
    train(module, optimizer, range(2, 4))
    assert all(torch.equal(saved[name], before[name]) for name in saved)
    assert saved.keys() == {
        f"{n}/{key}" for n, _ in module.named_parameters() for key in ("exp_avg", "exp_avg_sq", "step")
    }


@pytest.mark.parametrize("damage", ["missing parameter", "unknown parameter", "missing key", "shape"])
def test_a_state_that_does_not_fit_is_refused(damage):
    module = network()
    optimizer = optimizer_of(module)
    train(module, optimizer, range(1))
    saved = optimizer_tensors(optimizer, module)
    if damage == "missing parameter":
        saved = {name: tensor for name, tensor in saved.items() if not name.startswith("2.bias/")}
    elif damage == "unknown parameter":
        saved["9.bias/exp_avg"] = torch.zeros(2)
    elif damage == "missing key":
        del saved["2.bias/step"]
    else:
        saved["2.bias/exp_avg"] = torch.zeros(3)
    resumed = network()
    with pytest.raises(ArtifactError, match=r"here: .*(2|9)\.bias"):
        load_optimizer_tensors(optimizer_of(resumed), resumed, saved, "here")


def test_every_group_gets_the_learning_rate():
    optimizer = optimizer_of(network())
    set_learning_rate(optimizer, 0.125)
    assert {group["lr"] for group in optimizer.param_groups} == {0.125}
