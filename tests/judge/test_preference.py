"""A preference study: blind sides, votes that survive, and an interval that two other formulas give."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import binomtest

from stage2_prior.folder import SamplingDefaults
from vq_prior.cli import main
from vq_prior.core.disk.locks import release_claims
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.judge.preference import Vote, left_of, open_study, preference, wilson
from vq_prior.model.pipeline import VQPriorPipeline

CASES = [(0, 1), (1, 1), (3, 10), (7, 10), (50, 100), (0, 40), (40, 40), (1, 1000), (617, 1234)]


@pytest.mark.parametrize(("k", "n"), CASES)
def test_the_interval_is_that_of_scipy(k, n):
    found = binomtest(k, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson(k, n) == pytest.approx((found.low, found.high), abs=1e-12)


@pytest.mark.parametrize(("k", "n"), [(3, 10), (50, 100), (617, 1234)])
def test_the_ends_are_where_the_score_test_just_rejects(k, n):
    z = 1.959963984540054

    def statistic(p):
        return (k / n - p) / math.sqrt(p * (1 - p) / n)

    low = brentq(lambda p: statistic(p) - z, 1e-9, k / n)
    high = brentq(lambda p: statistic(p) + z, k / n, 1 - 1e-9)
    assert wilson(k, n) == pytest.approx((low, high), abs=1e-9)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng, n, p = np.random.default_rng(0), 60, 0.62
    counts = rng.binomial(n, p, size=4000)
    held = np.mean([low <= p <= high for low, high in (wilson(int(k), n) for k in counts)])
    assert 0.93 < held < 0.97


def test_nothing_decided_is_no_share():
    assert wilson(0, 0) == (0.0, 1.0)
    found = preference([Vote(0, "", "A", "equal")])
    assert (found.share, found.equal, found.low, found.high) == (None, 1, 0.0, 1.0)
    with pytest.raises(UsageError, match="between 0 and n"):
        wilson(3, 2)
    with pytest.raises(UsageError, match="confidence"):
        wilson(1, 2, confidence=1.0)


def test_sides_are_a_function_of_the_seed_and_about_even():
    sides = [left_of(0, pair) for pair in range(2000)]
    assert sides == [left_of(0, pair) for pair in range(2000)]
    assert 900 < sides.count("A") < 1100
    assert sides[:50] != [left_of(1, pair) for pair in range(50)]


@pytest.fixture(scope="module")
def models(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two MODELs of the same weights that draw at other temperatures."""
    pipe = VQPriorPipeline.from_pretrained(tiny_model)
    cooler = replace(pipe.prior, sampling=SamplingDefaults(temperature=0.3))
    other = tmp_path_factory.mktemp("other") / "model"
    VQPriorPipeline(pipe.codec, cooler).save_pretrained(other)
    return tiny_model, other


def opened(models, votes, seed=None):
    release_claims()  # as if the program had ended
    return open_study(models, ("first", "second"), votes=votes, seed=seed)


def test_a_pair_is_of_one_class_and_seed_and_stands_as_the_seed_says(models, tmp_path):
    study = opened(models, tmp_path / "votes.json", seed=3)
    pipes = [VQPriorPipeline.from_pretrained(model) for model in models]
    for pair in (0, 1, 9, 12):
        shown = study.pair(pair)
        own = [np.asarray(pipe(1, seed=3, first_index=pair).images[0]) for pipe in pipes]
        order = (0, 1) if left_of(3, pair) == "A" else (1, 0)
        for pixels, side in zip(shown, order, strict=True):
            assert np.array_equal(pixels[..., 0], own[side])
        assert study.label(pair) == pipes[0].index.label_names[pair % 10]
    release_claims()


def test_votes_are_on_the_disk_at_once_and_go_on(models, tmp_path):
    path = tmp_path / "kept" / "votes.json"
    study = opened(models, path, seed=5)
    for pair in range(12):  # one who likes A, and cannot tell the last two apart
        choice = "equal" if pair >= 10 else "left" if left_of(5, pair) == "A" else "right"
        assert study.vote(pair, choice)
        assert len(json.loads(path.read_text())["votes"]) == pair + 1
    assert not study.vote(3, "left")  # a window that shows an old pair
    again = opened(models, path)
    assert (again.number, again.state.seed) == (12, 5)
    found = preference(again.state.votes)
    assert (found.a, found.b, found.equal, found.share) == (10, 0, 2, 1.0)
    assert (found.low, found.high) == pytest.approx(tuple(binomtest(10, 10).proportion_ci(method="wilson")))
    told = again.in_words()
    assert "A is first, B is second" in told
    assert "A was preferred in 10 of 10 pairs: 100.0%, 95% interval 72.2% to 100.0%; 2 equal." in told
    assert "people prefer A" in told
    assert "looked at before" not in told
    assert again.vote(12, "equal")
    last = opened(models, path)
    assert last.state.looked_at == (12,)
    assert "looked at before, after 12 votes" in last.in_words()
    release_claims()


def test_votes_of_another_study_are_refused(models, tmp_path):
    path = tmp_path / "votes.json"
    assert opened(models, path, seed=5).vote(0, "left")
    with pytest.raises(UsageError, match="votes on other models"):
        opened(models[::-1], path)
    with pytest.raises(UsageError, match="holds votes of seed 5, got 6"):
        opened(models, path, seed=6)
    state = json.loads(path.read_text())
    state["votes"][0]["left"] = "B" if state["votes"][0]["left"] == "A" else "A"
    path.write_text(json.dumps(state))
    with pytest.raises(ArtifactError, match="vote 0 is not of the pair"):
        opened(models, path)
    with pytest.raises(UsageError, match="are the same model"):
        opened((models[0], models[0]), tmp_path / "others.json")
    assert not (tmp_path / "others.json").exists()
    release_claims()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "app needs either --model MODEL or --compare A B"),
        (("--model", "A", "--compare", "A", "B"), "app needs either"),
        (("--model", "A", "--votes", "votes.json"), "--votes goes with --compare A B alone"),
        (("--compare", "A", "A"), "are the same model"),
        (("--compare", "A", "B", "--seed", "-1"), "seed must be between 0"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(words, text, models, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gradio")
    monkeypatch.chdir(tmp_path)
    names = {"A": str(models[0]), "B": str(models[1])}
    assert main(["app", *[names.get(word, word) for word in words]]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert text in lines[0]
    assert list(tmp_path.iterdir()) == []
