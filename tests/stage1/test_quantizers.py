"""What holds for every registered quantiser, and what holds for one."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1_vqvae.quantizer_settings import (
    SUITS,
    QuantizerSettings,
    check_quantizer_settings,
    fixed_code_dim,
    fsq_levels,
)
from stage1_vqvae.quantizers import QUANTIZERS, Quantizer, lookup
from stage1_vqvae.quantizers.entropy import codebook_entropy, sign_entropy
from stage1_vqvae.quantizers.gradients import rotation
from stage1_vqvae.quantizers.lookup import kmeans, nearest_codes
from vq_prior.core.errors import UsageError
from vq_prior.testing import check_quantizer

EVERY = pytest.mark.parametrize("name", QUANTIZERS.names())
WITH_A_TABLE = pytest.mark.parametrize("name", ["ema", "nearest", "simvq"])
WITH_REVIVAL = pytest.mark.parametrize("name", [name for name in SUITS if "revive_below" in SUITS[name]])


def quantizer(name: str, *, num_codes: int = 8, code_dim: int = 3, **options: object) -> Quantizer:
    torch.manual_seed(0)
    code_dim = fixed_code_dim(name, num_codes) or code_dim
    if name == "lfq":
        options = {"entropy_temperature": 1.0} | options
    return QUANTIZERS[name](QuantizerSettings(name=name, num_codes=num_codes, code_dim=code_dim, **options))


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def unchanged(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@EVERY
def test_every_quantiser_keeps_the_contract(name: str) -> None:
    check_quantizer(lambda: quantizer(name))


@pytest.mark.parametrize("name", ["ema", "nearest", "simvq", "lfq"])
def test_gradient_passes_straight_through(name: str) -> None:
    z = latents(5, 3).requires_grad_()
    upstream = latents(5, 3, seed=1)
    (quantizer(name)(z).vectors * upstream).sum().backward()
    assert torch.equal(z.grad, upstream)


@EVERY
def test_training_forward_leaves_the_state_to_update(name: str) -> None:
    module = quantizer(name).train()
    before = state_of(module)
    module(latents(100, module.code_dim))
    assert unchanged(module, before)
    module.update(np.random.default_rng(0))
    assert unchanged(module, before) == ("decay" not in SUITS[name])


@pytest.mark.parametrize("name", [name for name in SUITS if "start" in SUITS[name]])
@pytest.mark.parametrize("start", ["data", "kmeans"])
def test_start_places_codes_among_the_data(name: str, start: str) -> None:
    module = quantizer(name, start=start)
    vectors = latents(40, 3) + 100
    module.start(vectors, np.random.default_rng(0))
    codebook = module.embed((torch.arange(8),)).detach()
    assert (codebook > 90).all()
    if start == "data":
        assert all((vectors == row).all(1).any() for row in codebook)


@WITH_REVIVAL
@pytest.mark.fault("F25")
def test_dead_code_revives_on_a_vector_of_the_batch_and_survives_the_next_step(name: str) -> None:
    module = quantizer(name, num_codes=4, decay=0.5).train()
    codebook = module.identity_tensors()["codebook"]
    with torch.no_grad():
        codebook.copy_(torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0], [1e4, 1e4, 1e4]]))
        getattr(module, "ema_sums", codebook).copy_(codebook)
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
    assert module.identity_tensors()["codebook"][3].abs().max() < 2  # sums of the dead code would take it back


@WITH_A_TABLE
def test_identity_is_config_and_codebook_alone(name: str) -> None:
    module = quantizer(name)
    assert module.identity_config() == {"name": name, "num_codes": 8, "code_dim": 3, "distance": "euclidean"}
    assert set(module.identity_tensors()) == ({"codebook", "map.weight"} if name == "simvq" else {"codebook"})


@settings(max_examples=25, deadline=None)
@given(num=st.integers(0, 40), K=st.integers(1, 200), D=st.integers(1, 6), seed=st.integers(0, 2**16))
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
    monkeypatch.setattr(lookup, "CHUNK_ELEMENTS", 16 * 40)
    assert torch.equal(nearest_codes(vectors, codebook), whole)
    monkeypatch.setattr(lookup, "CHUNK_VECTORS", 7)
    monkeypatch.setattr(lookup, "CHUNK_ELEMENTS", 1)
    assert torch.equal(nearest_codes(vectors, codebook), whole)
    monkeypatch.setattr(lookup, "MAX_ELEMENTS", 16 * 2)
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
    chosen = module.codebook[result.codes[0]]
    distance = ((z - chosen) ** 2).mean()
    assert torch.allclose(result.loss["codebook"], distance)
    (gradient,) = torch.autograd.grad(result.loss["codebook"], [module.codebook], retain_graph=True)
    assert gradient.abs().sum() > 0
    assert torch.autograd.grad(result.loss["codebook"], [z], allow_unused=True, retain_graph=True)[0] is None
    assert torch.autograd.grad(result.loss["commitment"], [module.codebook], allow_unused=True)[0] is None


def test_unknown_name_lists_what_exists() -> None:
    with pytest.raises(ValueError, match=r"unknown quantizer 'emma', available: ema, .*; did you mean ema"):
        QUANTIZERS["emma"]


def brute_entropy_term(q: torch.Tensor) -> torch.Tensor:
    """Mean entropy of the rows of q [N, K] minus the entropy of their mean, in float64."""
    q = q.double()
    mean = q.mean(0)
    return -torch.xlogy(q, q).sum(1).mean() + torch.xlogy(mean, mean).sum()


def test_the_entropy_term_in_pieces_is_that_of_the_whole_table_gradient_included(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stage1_vqvae.quantizers.entropy.ROWS_AT_ONCE", 40)
    ours = [latents(23, 3).requires_grad_(), latents(8, 3, seed=1).requires_grad_()]
    theirs = [tensor.detach().double().requires_grad_() for tensor in ours]
    term = codebook_entropy(*ours, temperature=0.5, sums=lambda tensor: tensor)
    expected = brute_entropy_term(torch.softmax(-torch.cdist(*theirs).square() / 0.5, dim=1))
    torch.testing.assert_close(term.double(), expected, rtol=1e-5, atol=1e-6)  # float32 sums
    term.backward()
    expected.backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-6)  # float32 sums


@pytest.mark.parametrize("D", [1, 2, 5])
def test_the_entropy_term_of_signs_is_that_of_all_their_combinations(D: int) -> None:
    ours = latents(17, D).requires_grad_()
    theirs = ours.detach().double().requires_grad_()
    table = quantizer("lfq", num_codes=2**D).embed((torch.arange(2**D),)).double()
    expected = brute_entropy_term(torch.softmax(-torch.cdist(theirs, table).square() / 0.7, dim=1))
    term = sign_entropy(ours, 0.7, lambda tensor: tensor)
    torch.testing.assert_close(term.double(), expected, rtol=1e-5, atol=1e-6)  # float32 sums
    term.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["ema", "nearest", "simvq"])
def test_the_entropy_term_is_there_when_asked_for_and_only_in_training(name: str) -> None:
    z = latents(20, 3).requires_grad_()
    assert "entropy" not in quantizer(name).train()(z).loss
    module = quantizer(name, entropy_temperature=1.0)
    assert "entropy" in module.train()(z).loss
    assert "entropy" not in module.eval()(z).loss


def test_the_rotation_trick_is_the_rotation_of_the_paper() -> None:
    z, chosen, upstream = latents(6, 4), latents(6, 4, seed=1), latents(6, 4, seed=2)
    z.requires_grad_()
    vectors = rotation(z, chosen)
    assert torch.equal(vectors, chosen)
    (vectors * upstream).sum().backward()
    for row in range(6):
        e, q = (v.detach().double()[row] / v.detach().double()[row].norm() for v in (z, chosen))
        r = (e + q) / (e + q).norm()
        turn = torch.eye(4, dtype=torch.float64) - 2 * torch.outer(r, r) + 2 * torch.outer(q, e)
        torch.testing.assert_close(turn @ e, q)
        torch.testing.assert_close(turn @ turn.T, torch.eye(4, dtype=torch.float64))
        scale = chosen[row].double().norm() / z[row].detach().double().norm()
        torch.testing.assert_close(z.grad[row].double(), scale * turn.T @ upstream[row].double(), rtol=1e-4, atol=1e-5)


def test_where_no_rotation_is_defined_the_gradient_goes_straight_through() -> None:
    z = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    rotation(z, torch.tensor([[-1.0, -2.0], [0.0, 0.0], [0.0, 0.0]])).sum().backward()
    assert torch.equal(z.grad, torch.ones(3, 2))


@WITH_A_TABLE
def test_with_the_cosine_distance_lengths_do_not_matter(name: str) -> None:
    module = quantizer(name, num_codes=16, distance="cosine").train()
    module.start(latents(100, 3), np.random.default_rng(0))
    for step in range(3):
        module(latents(100, 3, seed=step))
        module.update(np.random.default_rng(step))
    module.eval()
    z = latents(50, 3, seed=9)
    result = module(z)
    assert torch.equal(module(z * latents(50, 1, seed=4).exp()).codes[0], result.codes[0])
    torch.testing.assert_close(module.embed((torch.arange(16),)).norm(dim=1), torch.ones(16))
    similarity = torch.nn.functional.normalize(z, dim=1) @ module.embed((torch.arange(16),)).T
    assert torch.equal(similarity.argmax(1), result.codes[0])


def test_simvq_moves_every_code_by_its_map_and_the_map_alone_learns() -> None:
    module = quantizer("simvq").train()
    module.start(latents(50, 3), np.random.default_rng(0))
    assert torch.equal(module.embed((torch.arange(8),)), module.codebook)
    before, frozen = module.embed((torch.arange(8),)).detach().clone(), module.codebook.clone()
    result = module(latents(1, 3, seed=3))  # one vector, one code
    result.loss["codebook"].backward()
    assert [name for name, p in module.named_parameters() if p.grad is not None] == ["map.weight"]
    with torch.no_grad():
        module.map.weight -= 0.1 * module.map.weight.grad
    assert torch.equal(module.codebook, frozen)
    assert ((module.embed((torch.arange(8),)) - before).abs().sum(1) > 0).all()


@pytest.mark.parametrize("K", [2, 12, 512, 1000])
def test_fsq_is_the_papers_formula(K: int) -> None:
    module = quantizer("fsq", num_codes=K)
    L = np.array(module.levels)
    assert L.prod() == K
    z = 3 * latents(300, module.code_dim).double().numpy()
    half = (L - 1) * 1.001 / 2
    offset = np.where(L % 2 == 0, 0.5, 0.0)
    rounded = np.round(np.tanh(z + np.arctanh(offset / half)) * half - offset)
    codes = ((rounded + L // 2) * np.cumprod([1, *L[:-1]])).sum(1)
    result = module(torch.from_numpy(z).float())
    assert np.array_equal(result.codes[0].numpy(), codes.astype(np.int64))
    np.testing.assert_allclose(result.vectors.numpy(), rounded / (L // 2))
    table = module.embed((torch.arange(K),))
    assert len(torch.unique(table, dim=0)) == K
    assert table.abs().max() <= 1


@pytest.mark.parametrize(("num_codes", "levels"), [(2, (2,)), (64, (8, 8)), (256, (8, 8, 4)), (15360, (8, 8, 8, 6, 5))])
def test_fsq_levels_multiply_to_the_number_of_codes(num_codes: int, levels: tuple[int, ...]) -> None:
    assert fsq_levels(num_codes) == levels


def test_lfq_takes_the_nearest_of_all_sign_vectors() -> None:
    module = quantizer("lfq", num_codes=32)
    z = latents(100, 5)
    assert torch.equal(module(z).codes[0], nearest_codes(z, module.embed((torch.arange(32),))))


def gumbel_at(progress: float, first: int = 0) -> Quantizer:
    module = quantizer("gumbel", num_codes=6, temperatures=(2.0, 0.01)).train()
    module.begin_step(
        progress=progress, noise=lambda row: np.random.default_rng(first + row), sums=lambda tensor: tensor
    )
    return module


def test_gumbel_terms_are_those_of_the_posterior() -> None:
    module, z = gumbel_at(0.5), latents(10, 4, 3)
    with torch.no_grad():
        module.log_precision.fill_(0.3)
    result = module(z)
    squares = torch.cdist(z.reshape(-1, 3).double(), module.codebook.detach().double()).square()
    q = torch.softmax(-np.exp(0.3) * squares, dim=1)
    kl = (torch.xlogy(q, q).sum(1) + np.log(6)).mean()
    torch.testing.assert_close(result.loss["kl"].double(), kl, rtol=1e-4, atol=1e-5)
    expected = (q * squares).sum(1).mean() / 3
    for term in ("commitment", "codebook"):
        torch.testing.assert_close(result.loss[term].double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(result.codes[0].reshape(-1), q.argmax(1))


def test_gumbel_draws_a_row_from_the_rows_own_noise() -> None:
    z = latents(5, 4, 3)
    whole, second = gumbel_at(0.3)(z).vectors, gumbel_at(0.3, first=2)(z[2:]).vectors
    torch.testing.assert_close(whole[2:], second)
    assert not torch.equal(whole, gumbel_at(0.3, first=1)(z).vectors)


def test_gumbel_cools_from_a_mixture_to_one_code() -> None:
    assert [round(gumbel_at(p).temperature, 3) for p in (0.0, 0.5, 1.0)] == [2.0, 1.005, 0.01]
    cold = gumbel_at(1.0)
    distances = torch.cdist(cold(latents(50, 3)).vectors, cold.codebook).min(1).values
    assert (distances < 0.05).float().mean() > 0.9
    warm = gumbel_at(0.0)
    assert (torch.cdist(warm(latents(50, 3)).vectors, warm.codebook).min(1).values > 0.05).float().mean() > 0.9


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fsq", {"num_codes": 509}, "product of numbers from 2 to 8 with fsq, such as 512 or 1000, got 509"),
        ("lfq", {"num_codes": 500}, "power of two with lfq, got 500"),
        ("lfq", {"num_codes": 512, "code_dim": 8}, "--quantizer.code-dim must be 9 with lfq and 512 codes, got 8"),
        ("fsq", {"distance": "cosine"}, "--quantizer.distance does not apply to fsq, got cosine; leave it out"),
        ("simvq", {"revive_below": 0.1}, "--quantizer.revive-below does not apply to simvq, got 0.1"),
        ("gumbel", {"gradient": "rotation"}, "--quantizer.gradient does not apply to gumbel"),
        ("gumbel", {"temperatures": (1.0, 0.0)}, "--quantizer.temperatures must be between 0.001 and 100, got 0.0"),
        ("ema", {"entropy_temperature": 0.0}, "--quantizer.entropy-temperature must be a number above 0, got 0.0"),
    ],
)
def test_settings_that_do_not_suit_are_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        check_quantizer_settings(QuantizerSettings(name=name, **options))


def test_what_suits_which_names_every_quantiser() -> None:
    assert set(SUITS) == set(QUANTIZERS.names())
