"""The properties that every quantiser has, ours and yours, checked on a tiny one.

Letters: D code dimension, K number of codes of a level.
"""

import json
from collections.abc import Callable
from math import prod

import numpy as np
import torch
from torch import Tensor

from stage1_vqvae.quantizers import Quantized, Quantizer
from vq_prior.core.config import to_json

SHAPES = ((), (3,), (2, 4, 4), (0, 4, 4), (2, 3, 2, 2))


def check_quantizer(make: Callable[[], Quantizer]) -> None:
    """Check that what `make` returns keeps the contract of a quantiser.

    Args:
        make: Returns a new quantiser of a few codes, drawn by torch's own generator and so the same after the same
            seed. A class needs its settings: `lambda: Mine(QuantizerSettings(name="mine", num_codes=8, code_dim=3))`.

    Raises:
        AssertionError: With the property that does not hold.
    """
    for check in (
        _check_shapes,
        _check_codes_stand_for_vectors,
        _check_gradients,
        _check_nothing_changes_in_eval_mode,
        _check_forward_leaves_the_state_to_update,
        _check_float32,
        _check_pieces_are_one_batch,
        _check_start_and_update_repeat,
        _check_identity,
    ):
        check(lambda: _seeded(make))


def _seeded(make: Callable[[], Quantizer]) -> Quantizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().train()


def _latents(module: Quantizer, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, module.code_dim, generator=torch.Generator().manual_seed(seed))


def _state(module: Quantizer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def _same_codes(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def _check_shapes(new: Callable[[], Quantizer]) -> None:
    module = new()
    assert module.level_sizes == type(module).sizes_of(module.settings), "level_sizes must be what sizes_of says"
    for training in (True, False):
        for shape in SHAPES:
            z = _latents(module.train(training), *shape)
            result = module(z)
            assert isinstance(result, Quantized), f"forward must return a Quantized, not {type(result).__name__}"
            assert result.vectors.shape == z.shape, (
                f"vectors must be {tuple(z.shape)}, got {tuple(result.vectors.shape)}"
            )
            assert len(result.codes) == len(module.level_sizes), "codes must be a tuple of one tensor a level"
            for codes in result.codes:
                assert codes.shape == shape, f"codes of z {tuple(z.shape)} must be {shape}, got {tuple(codes.shape)}"
                assert codes.dtype == torch.int64, f"codes must be int64, got {codes.dtype}"
            unknown = result.loss.keys() - module.loss_terms.keys()
            assert not unknown, f"loss_terms does not list {sorted(unknown)}"
            for name, term in result.loss.items():
                assert term.shape == (), f"the term {name} must be one number"
                assert torch.isfinite(term), f"the term {name} must be finite, got {float(term.detach())}"
                assert prod(shape) or float(term.detach()) == 0.0, f"the term {name} of no latents must be 0"
    z = _latents(module.eval(), 2, 4)
    flat = module(z.reshape(-1, module.code_dim)).codes
    assert _same_codes(tuple(codes.reshape(-1) for codes in module(z).codes), flat), "axes before the last are batch"


def _check_codes_stand_for_vectors(new: Callable[[], Quantizer]) -> None:
    module = new().eval()
    z = _latents(module, 50)
    result = module(z)
    assert torch.equal(result.vectors, module.embed(result.codes)), "embed must give the vectors of the codes"
    assert _same_codes(module.encode(z), result.codes), "encode must give the codes of forward in eval mode"
    for codes, size in zip(result.codes, module.level_sizes, strict=True):
        assert 0 <= int(codes.min()) <= int(codes.max()) < size, f"codes must lie in [0, {size})"
    for level, size in enumerate(module.level_sizes):
        zero, every = torch.zeros(size, dtype=torch.int64), torch.arange(size)
        codes = tuple(every if n == level else zero for n in range(len(module.level_sizes)))
        assert module.embed(codes).shape == (size, module.code_dim), "embed must take every code of every level"


def _check_gradients(new: Callable[[], Quantizer]) -> None:
    module = new()
    z = _latents(module, 20).requires_grad_()
    result = module(z)
    (result.vectors.square().sum() + torch.stack([result.vectors.sum() * 0, *result.loss.values()]).sum()).backward()
    assert z.grad is not None, "a gradient must reach the latents"
    assert torch.isfinite(z.grad).all(), "the gradient of the latents must be finite"
    assert z.grad.any(), "the gradient of the latents must not be 0"


def _check_nothing_changes_in_eval_mode(new: Callable[[], Quantizer]) -> None:
    module = new().eval()
    before = _state(module)
    module(_latents(module, 100))
    assert _same(_state(module), before), "a forward pass in eval mode must change nothing"
    seen, fresh = module, new().eval()
    for each in (seen, fresh):
        each.update(np.random.default_rng(0))
    assert _same(_state(seen), _state(fresh)), "latents of a pass in eval mode must not count in update"


def _check_forward_leaves_the_state_to_update(new: Callable[[], Quantizer]) -> None:
    module = new()
    before = _state(module)
    module(_latents(module, 100))
    assert _same(_state(module), before), "a forward pass in training must leave the state to update"
    module(torch.zeros(0, module.code_dim))
    counts = module.update(np.random.default_rng(0))
    assert all(isinstance(count, (int, float)) for count in counts.values()), "update must return counts by name"
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values()), "update must leave numbers"


def _check_float32(new: Callable[[], Quantizer]) -> None:
    module = new().eval()
    z = _latents(module, 500)
    plain = module(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = module(z)
    assert result.vectors.dtype == torch.float32, "vectors must be float32 whatever the autocast"
    assert _same_codes(result.codes, plain.codes), "autocast must not change codes"
    assert _same(dict(result.loss), dict(plain.loss)), "autocast must not change the loss"


def _check_pieces_are_one_batch(new: Callable[[], Quantizer]) -> None:
    whole, pieces = new(), new()
    z = _latents(whole, 64)
    whole(z)
    for piece in (z[:20], z[20:]):
        pieces(piece)
    for module in (whole, pieces):
        module.update(np.random.default_rng(3))
    for name, tensor in whole.state_dict().items():  # sums of 64 numbers in another order
        message = f"{name}: two passes before an update must count as one batch"
        torch.testing.assert_close(pieces.state_dict()[name], tensor, atol=1e-5, rtol=1e-5, msg=message)


def _check_start_and_update_repeat(new: Callable[[], Quantizer]) -> None:
    states = []
    for _ in range(2):
        module = new()
        module.start(_latents(module, 100), np.random.default_rng(1))
        module(_latents(module, 30))
        module.update(np.random.default_rng(2))
        states.append(_state(module))
    assert _same(*states), "start and update must be functions of their generator"


def _check_identity(new: Callable[[], Quantizer]) -> None:
    module, other = new().eval(), new().eval()
    json.dumps(to_json(module.identity_config()), allow_nan=False)
    tensors = module.identity_tensors()
    addresses = {tensor.data_ptr() for tensor in module.state_dict().values()}
    assert all(tensor.data_ptr() in addresses for tensor in tensors.values()), "identity_tensors must be of the state"
    z = _latents(module, 200)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(9)).abs() + 0.1)
        for name, tensor in other.identity_tensors().items():
            tensor.copy_(tensors[name])
    assert _same_codes(module.encode(z), other.encode(z)), "codes must depend on identity_tensors alone"
