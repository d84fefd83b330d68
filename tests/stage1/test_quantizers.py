"""What holds for every registered quantiser, and what holds for one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1_vqvae.quantizers import QUANTIZERS, Quantizer
from stage1_vqvae.quantizers.lookup import kmeans, nearest_codes
from stage1_vqvae.settings import QuantizerSettings

EVERY = pytest.mark.parametrize("name", QUANTIZERS.names())
SHAPES = st.lists(st.integers(0, 4), min_size=0, max_size=3)


def quantizer(name: str, *, num_codes: int = 8, code_dim: int = 3, **options: object) -> Quantizer:
    torch.manual_seed(0)
    return QUANTIZERS[name](QuantizerSettings(name=name, num_codes=num_codes, code_dim=code_dim, **options))


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@EVERY
@settings(max_examples=15, deadline=None)
@given(shape=SHAPES)
def test_last_axis_is_the_vector_and_every_other_is_batch(name: str, shape: list[int]) -> None:
    module = quantizer(name)
    z = latents(*shape, 3)
    result = module(z)
    assert result.codes.shape == tuple(shape)
    assert result.codes.dtype == torch.int64
    assert result.vectors.shape == z.shape
    flat = module(z.reshape(-1, 3))
    assert torch.equal(flat.codes, result.codes.reshape(-1))
    assert all(torch.isfinite(term) for term in result.loss.values())


@EVERY
def test_vectors_are_those_of_the_codes(name: str) -> None:
    module = quantizer(name)
    result = module(latents(50, 3))
    # z + (e - z) rounds: a few units in the last place of numbers of size 4
    torch.testing.assert_close(result.vectors, module.embed(result.codes), atol=2e-6, rtol=0)
    assert result.codes.min() >= 0
    assert result.codes.max() < 8


@EVERY
def test_gradient_passes_straight_through(name: str) -> None:
    z = latents(5, 3).requires_grad_()
    upstream = latents(5, 3, seed=1)
    (quantizer(name)(z).vectors * upstream).sum().backward()
    assert torch.equal(z.grad, upstream)


@EVERY
def test_eval_mode_changes_nothing(name: str) -> None:
    module = quantizer(name).eval()
    before = state_of(module)
    module(latents(100, 3))
    module.update(np.random.default_rng(0))
    fresh = quantizer(name).eval()
    fresh.update(np.random.default_rng(0))
    assert unchanged(module, state_of(fresh))
    module.load_state_dict(before)
    module(latents(100, 3))
    assert unchanged(module, before)


@EVERY
def test_training_forward_leaves_the_state_to_update(name: str) -> None:
    module = quantizer(name).train()
    before = state_of(module)
    module(latents(100, 3))
    assert unchanged(module, before)
    module.update(np.random.default_rng(0))
    assert not unchanged(module, before)


@EVERY
def test_empty_batch_gives_empty_codes_and_zero_loss(name: str) -> None:
    module = quantizer(name).train()
    z = torch.zeros(0, 4, 4, 3, requires_grad=True)
    result = module(z)
    assert result.codes.shape == (0, 4, 4)
    total = sum(result.loss.values()) + result.vectors.sum()
    assert float(total.detach()) == 0.0
    total.backward()
    module.update(np.random.default_rng(0))
    assert all(torch.isfinite(tensor).all() for tensor in module.state_dict().values())


@EVERY
def test_runs_in_float32_under_autocast(name: str) -> None:
    module = quantizer(name, num_codes=64).eval()
    z = latents(500, 3)
    expected = module(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = module(z)
    assert result.vectors.dtype == torch.float32
    assert torch.equal(result.codes, expected.codes)
    assert torch.equal(result.loss["commitment"], expected.loss["commitment"])


@EVERY
def test_two_halves_before_an_update_are_one_batch(name: str) -> None:
    whole, halves = quantizer(name).train(), quantizer(name).train()
    z = latents(64, 3)
    whole(z)
    halves(z[:20])
    halves(z[20:])
    for module in (whole, halves):
        module.update(np.random.default_rng(3))
    for key, tensor in whole.state_dict().items():
        # sums of 64 numbers in another order
        torch.testing.assert_close(halves.state_dict()[key], tensor, atol=1e-5, rtol=1e-5)


@EVERY
def test_start_and_update_are_functions_of_their_generator(name: str) -> None:
    states = []
    for _ in range(2):
        module = quantizer(name, num_codes=16).train()
        module.start(latents(100, 3), np.random.default_rng(1))
        module(latents(30, 3))
        module.update(np.random.default_rng(2))
        states.append(state_of(module))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@EVERY
@pytest.mark.parametrize("start", ["data", "kmeans"])
def test_start_places_codes_among_the_data(name: str, start: str) -> None:
    module = quantizer(name, start=start)
    vectors = latents(40, 3) + 100
    module.start(vectors, np.random.default_rng(0))
    codebook = module.identity_tensors()["codebook"]
    assert (codebook > 90).all()
    if start == "data":
        assert all((vectors == row).all(1).any() for row in codebook)


@EVERY
def test_dead_code_revives_on_a_vector_of_the_batch_and_survives_the_next_step(name: str) -> None:
    module = quantizer(name, num_codes=4, decay=0.5).train()
    codebook = module.identity_tensors()["codebook"]
    with torch.no_grad():
        codebook.copy_(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1e4, 1e4, 1e4]]))
    z = codebook[:3].repeat(20, 1) + 0.01 * latents(60, 3)
    revived = 0.0
    for step in range(6):
        module(z)
        revived = module.update(np.random.default_rng(step))["num_revived"]
        if revived:
            break
    assert revived == 1.0
    assert (z == module.identity_tensors()["codebook"][3]).all(1).any()
    module(z)
    assert module.update(np.random.default_rng(9))["num_revived"] == 0.0


@EVERY
def test_identity_is_config_and_codebook_alone(name: str) -> None:
    module = quantizer(name)
    assert module.identity_config() == {"name": name, "num_codes": 8, "code_dim": 3}
    assert set(module.identity_tensors()) == {"codebook"}


@settings(max_examples=25, deadline=None)
@given(num=st.integers(0, 40), K=st.integers(1, 20), D=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_lookup_agrees_with_numpy(num: int, K: int, D: int, seed: int) -> None:
    # small whole numbers: every product and sum is exact in float32, so ties are true ties
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-3, 4, (num, D)).astype(np.float32)
    codebook = rng.integers(-3, 4, (K, D)).astype(np.float32)
    distances = ((vectors[:, None] - codebook[None]) ** 2).sum(-1)
    found = nearest_codes(torch.from_numpy(vectors), torch.from_numpy(codebook))
    assert np.array_equal(found.numpy(), distances.argmin(1))


def test_lookup_in_chunks_is_the_lookup_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, codebook = latents(100, 4), latents(16, 4, seed=1)
    whole = nearest_codes(vectors, codebook)
    monkeypatch.setattr("stage1_vqvae.quantizers.lookup.CHUNK_ELEMENTS", 100)
    assert torch.equal(nearest_codes(vectors, codebook), whole)


def test_equal_codes_share_nothing_the_lowest_wins() -> None:
    codebook = torch.ones(300, 5)
    assert not nearest_codes(latents(200, 5), codebook).any()


def test_kmeans_finds_separate_clusters() -> None:
    centres = torch.tensor([[0.0, 0], [50, 0], [0, 50], [50, 50]])
    vectors = centres.repeat(25, 1) + 0.1 * latents(100, 2)
    found = kmeans(vectors, 4, np.random.default_rng(2), iterations=20)
    nearest = nearest_codes(centres, found)
    assert len(set(nearest.tolist())) >= 3
    assert torch.isfinite(found).all()


def test_ema_update_agrees_with_numpy() -> None:
    module = quantizer("ema", num_codes=6, decay=0.9, revive_below=None).train()
    counts, sums = module.ema_counts.numpy().copy(), module.ema_sums.numpy().copy()
    codebook = module.codebook.numpy().copy()
    for step in range(5):
        z = latents(40, 3, seed=step).numpy()
        codes = ((z[:, None] - codebook[None]) ** 2).sum(-1).argmin(1)
        one_hot = np.eye(6, dtype=np.float32)[codes]
        counts = 0.9 * counts + 0.1 * one_hot.sum(0)
        sums = 0.9 * sums + 0.1 * one_hot.T @ z
        codebook = sums / counts[:, None]
        module(torch.from_numpy(z))
        module.update(np.random.default_rng(0))
    # float32 sums of 40 numbers, five times
    np.testing.assert_allclose(module.codebook.numpy(), codebook, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(module.ema_counts.numpy(), counts, rtol=1e-5)


def test_nearest_loss_is_equation_three() -> None:
    module = quantizer("nearest")
    z = latents(10, 3).requires_grad_()
    result = module(z)
    chosen = module.codebook[result.codes]
    distance = ((z - chosen) ** 2).mean()
    assert torch.allclose(result.loss["codebook"], distance)
    (gradient,) = torch.autograd.grad(result.loss["codebook"], [module.codebook], retain_graph=True)
    assert gradient.abs().sum() > 0
    assert torch.autograd.grad(result.loss["codebook"], [z], allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(result.loss["commitment"], [module.codebook], allow_unused=True)[0] is None


def test_unknown_name_lists_what_exists() -> None:
    with pytest.raises(ValueError, match="unknown quantizer 'emma', available: ema, nearest; did you mean ema"):
        QUANTIZERS["emma"]
