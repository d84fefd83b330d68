"""The line of verdict says what was measured, against what, and what was not."""

import pytest

from vq_prior.judge.verdict import EVALUATE, figures, verdict

CODEC = {"psnr": 24.3, "mse": 0.015, "ssim": 0.9, "levels": [{"usage": 0.97, "perplexity": 81.0, "num_codes": 128}]}
PRIOR = {
    "nats_per_token": 1.0,
    "bits_per_dimension": 0.4,
    "previous_token": 1.25,
    "unigram": 3.0,
    "uniform": 4.85,
    "levels": [{"nats_per_token": 0.9, "unigram": 3.1, "previous_token": 1.3, "level_above": 1.7}],
}


def judged(fid: float, rfid: float, real: float = 1.0) -> dict[str, dict[str, float]]:
    return {"error_budget": {"fid": fid, "rfid": rfid}, "held_out": {"fid": real}}


@pytest.mark.parametrize(
    ("evaluation", "limit"),
    [
        (judged(10, 8), "What limits the samples is the codec (FID 10, of the codec's reconstructions alone 8; real"),
        (judged(10, 2), "What limits the samples is the prior (FID 10,"),
        (judged(10, 5), "Codec and prior limit the samples about alike"),
        (judged(1.4, 1.2), "Nothing limits the samples as far as this evaluator sees"),
        (None, f"Which of the two limits the samples is not measured; `{EVALUATE}`"),
        ({"error_budget": {"fid": None, "rfid": 3.0}}, "is not measured"),
    ],
)
def test_what_limits_is_the_larger_part_of_the_distance(evaluation, limit):
    line = verdict(CODEC, PRIOR, evaluation)
    assert limit in line
    assert "1.000 nats per token, 20% fewer than the previous token alone" in line
    assert "24.3 dB, smoother than the originals, and uses 97% of its codes. " in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("prior", "told"),
    [
        ({"nats_per_token": 3.0}, "The prior has learnt nothing: 3.000 nats per token, no better than the unigram"),
        ({"nats_per_token": 1.3}, "The prior has hardly learnt: 1.300 nats per token against 1.250"),
    ],
)
def test_a_prior_is_held_against_its_baselines(prior, told):
    assert told in verdict(CODEC, PRIOR | prior, judged(10, 2))


def test_a_fault_comes_before_what_limits():
    dead = CODEC | {"levels": [{"usage": 0.05, "perplexity": 3.0, "num_codes": 128}]}
    line = verdict(dead, PRIOR, judged(10, 2))
    assert "The codebook has collapsed: 5.0%" in line
    assert "limits the samples" not in line


def test_what_is_not_there_is_said():
    assert "neither codec nor prior is finished" in verdict(None, None, None)
    assert "There is no prior yet" in verdict(CODEC, None, None)
    assert "not part of this run" in verdict(None, PRIOR, None)
    two = verdict(CODEC | {"levels": [*CODEC["levels"], {"usage": 0.4, "num_codes": 64}]}, PRIOR, None)
    assert "uses 40% of its codes on the level that uses least" in two
    assert "squared error of 0.02" in verdict({"mse": 0.02}, PRIOR, None)


def test_every_figure_stands_beside_what_it_is_compared_with():
    rows = {row[0]: row[1:] for row in figures(CODEC, PRIOR, judged(10, 8), flat_psnr=12.5)}
    assert rows["PSNR of held-out reconstructions"][0] == "24.30 dB"
    assert "12.5 dB if each image shown were one colour" in rows["PSNR of held-out reconstructions"][1]
    assert "off by 6.1% of the range" in rows["PSNR of held-out reconstructions"][2]  # 10 ** (-24.3 / 20)
    assert rows["codes in use"][0] == "97.0% of 128"
    assert rows["perplexity"][:2] == ("81.0", "at most 128")
    for words in ("1.2500 the previous token alone", "3.0000 the code's frequency alone", "4.8500 all codes alike"):
        assert words in rows["nats per token"][1]
    assert "1.7000 the level above at that place" in rows["of level 0"][1]
    assert rows["FID of samples"][:2] == ("10", "1 real held-out images")
    assert figures(None, None, None) == ()
