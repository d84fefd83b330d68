"""A temperature for each level: asked for, measured, kept and used."""

from pathlib import Path

import pytest
import torch

from stage2_prior.calibrate import TEMPERATURES, TOLERANCE, calibrate, held_out_nats, level_nats
from stage2_prior.folder import SamplingDefaults
from stage2_prior.prior import CausalPrior, build_prior, load_prior, save_prior
from stage2_prior.sampling import check_sampling, sample_tokens
from stage2_prior.settings import PriorModel
from vq_prior.cli.parsing import parse
from vq_prior.core.disk.artifacts import new_folder
from vq_prior.core.errors import UsageError
from vq_prior.core.spec import CodeSpec, LevelSpec

LEVELS = (LevelSpec((2, 2), 6), LevelSpec((2, 2), 6))
SIZES = PriorModel("qwen3", 1, 16, 2, 2, 32, 1000.0)


def prior_of(order: str = "raster") -> CausalPrior:
    spec = CodeSpec(1, (4, 4), LEVELS)
    prior = build_prior(SIZES, spec, codec_id="0" * 64, label_names=("a", "b"), order=order, seed=1)
    with torch.no_grad():
        for weight in prior.model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * 0.5)
    return prior


@pytest.mark.parametrize("order", ["raster", "interleaved"])
def test_each_level_is_drawn_at_its_own(order: str) -> None:
    prior = prior_of(order)
    labels, how = torch.zeros(64, dtype=torch.int64), {"seed": 0, "indices": range(64)}
    usual = prior.layout.to_codes(sample_tokens(prior, labels, **how))
    first_cold = prior.layout.to_codes(sample_tokens(prior, labels, temperature=(1e-9, 1.0), **how))
    last_cold = prior.layout.to_codes(sample_tokens(prior, labels, temperature=(1.0, 1e-9), **how))
    same = sample_tokens(prior, labels, temperature=(0.8, 0.8), **how)
    assert torch.equal(same, sample_tokens(prior, labels, temperature=0.8, **how))
    cell = (slice(None), 0, 0)  # drawn before any other cell of its level
    assert len(usual[0][cell].unique()) > len(first_cold[0][cell].unique()) == 1
    if order == "raster":
        assert torch.equal(last_cold[0], usual[0])  # the second level comes after
        given = prior.layout.given_of({0: usual[0][:1].expand(64, 2, 2)})
        cold = sample_tokens(prior, labels, given=given, temperature=(1.0, 1e-9), **how)
        assert len(cold.unique(dim=0)) == 1


def test_as_many_as_levels_or_one() -> None:
    layout = prior_of().layout
    check_sampling(layout, temperature=(1.0, 0.9))
    with pytest.raises(UsageError, match=r"must be 1 or 2 number\(s\), one a level of codes, got 1, 0\.9, 1"):
        check_sampling(layout, temperature=(1.0, 0.9, 1.0))
    with pytest.raises(UsageError, match=r"temperature must be positive and finite, got \(1\.0, 0\.0\)"):
        check_sampling(layout, temperature=(1.0, 0.0))
    for wrong in ("1,0.9", (), (True, 1.0), torch.ones(2)):
        with pytest.raises(UsageError, match="temperature must be a number, or a tuple of one for each level"):
            check_sampling(layout, temperature=wrong)


def test_what_is_measured_is_each_levels_own_and_is_kept(tmp_path: Path) -> None:
    prior = prior_of()
    rows = torch.arange(300)
    # The first level is what the model is surest of, so that colder is better; the second is anything.
    given = sample_tokens(prior, rows % 2, seed=5, indices=range(300), temperature=(0.5, 1.0))
    random = torch.randint(6, (300, 4), generator=torch.Generator().manual_seed(0)) + 6
    tokens = torch.cat([given[:, :4], random], dim=1)
    settings = [SamplingDefaults(temperature, 1.0) for temperature in TEMPERATURES]
    nats = level_nats(prior, tokens, rows % 2, settings)
    whole = held_out_nats(prior, tokens, rows % 2, settings)
    assert (nats.sum(1) / tokens.numel()).tolist() == pytest.approx(whole, rel=1e-12)
    assert nats[0, 0] < nats[-1, 0]
    assert nats[0, 1] > nats[-1, 1]
    best = calibrate(prior, tokens, rows % 2).best
    assert isinstance(best.temperature, tuple)
    assert best.temperature[0] == min(TEMPERATURES)
    assert best.temperature[1] > best.temperature[0]
    for column, temperature in enumerate(best.temperature):
        scores = {each: float(nats[n, column]) for n, each in enumerate(TEMPERATURES)}
        if best.guidance_scale == 1.0:
            assert scores[temperature] <= min(scores.values()) * (1 + TOLERANCE)
    prior.sampling = best
    with new_folder(tmp_path / "prior") as staging:
        save_prior(prior, staging)
    assert load_prior(tmp_path / "prior").sampling == best


@pytest.mark.parametrize(("word", "wanted"), [("0.9", 0.9), ("1,0.85", (1.0, 0.85)), (None, None)])
def test_the_command_line_takes_a_number_or_one_a_level(word: str | None, wanted: object) -> None:
    words = ["generate", "--model", "m", "--out", "o", *(["--temperature", word] if word else [])]
    assert parse(words).settings.temperature == wanted
