"""What a run's figures mean, in words: one line of verdict, the figures beside what they are compared with, and what
each key of the tables is.

Everything here is a function of what was measured; where something was not, the words say so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stage1_vqvae.collapse import COLLAPSED

CODEC_LIMITS, PRIOR_LIMITS = 0.6, 0.4  # shares of the samples' FID that the reconstructions have alone
AS_REAL = 1.5  # times the FID of held-out pictures
NOT_MEASURED = "not measured"
EVALUATE = "vq-prior evaluate --model RUN/model --data DATA --out RUN/evaluation.json"

Measured = Mapping[str, Any]


def verdict(codec: Measured | None, prior: Measured | None, evaluation: Measured | None) -> str:
    """Return one line: what is good, what limits, and against what.

    Args:
        codec: What the training of the codec measured at its end; None before it ended.
        prior: The same of the prior.
        evaluation: What `vq-prior evaluate` wrote about these two; None without.
    """
    if codec is None and prior is None:
        return "Nothing can be told yet: neither codec nor prior is finished."
    if codec is None:
        return f"{_of_prior(prior or {})} The codec is not part of this run; what limits is {NOT_MEASURED}."
    if prior is None:
        return f"{_of_codec(codec)} There is no prior yet, so nothing can be told about samples."
    return f"{_of_prior(prior)} {_of_codec(codec)} {_limit(codec, prior, evaluation or {})}"


def _of_codec(codec: Measured) -> str:
    use = _least_use(codec)
    if use is not None and use < COLLAPSED:
        return f"The codebook has collapsed: {use:.1%} of the codes of a level are in use."
    several = len(codec.get("levels", [])) > 1
    used = "" if use is None else f", and uses {use:.0%} of its codes" + (" on the level that uses least" * several)
    if "psnr" in codec:
        return f"The codec keeps {codec['psnr']:.1f} dB, {_in_words(codec['psnr'])}{used}."
    return f"The codec has a squared error of {codec['mse']:.4g}{used}." if "mse" in codec else "The codec is trained."


def _of_prior(prior: Measured) -> str:
    nats, unigram, previous = (prior.get(name) for name in ("nats_per_token", "unigram", "previous_token"))
    if nats is None or unigram is None or previous is None:
        return "The prior is trained; how it does against its baselines is not written down."
    if nats >= unigram:
        return f"The prior has learnt nothing: {nats:.3f} nats per token, no better than the unigram ({unigram:.3f})."
    if nats >= previous:
        told = f"{nats:.3f} nats per token against {previous:.3f} of the previous token alone"
        return f"The prior has hardly learnt: {told} ({unigram:.3f} unigram)."
    least = min(previous, unigram)
    name = "the previous token alone" if previous <= unigram else "the unigram"
    fewer = 1 - nats / least
    return f"The prior is better than its baselines: {nats:.3f} nats per token, {fewer:.0%} fewer than {name}."


def _limit(codec: Measured, prior: Measured, evaluation: Measured) -> str:
    use = _least_use(codec)
    if use is not None and use < COLLAPSED:
        return "That limits everything: `vq-prior doctor --codec RUN` names remedies."
    if prior.get("nats_per_token", 0) >= prior.get("unigram", float("inf")):
        return "That limits everything: `vq-prior doctor --model RUN/model` looks for the reason."
    budget = evaluation.get("error_budget", {})
    fid, rfid = budget.get("fid"), budget.get("rfid")
    if fid is None or rfid is None:
        return f"Which of the two limits the samples is {NOT_MEASURED}; `{EVALUATE}` does that."
    real = evaluation.get("held_out", {}).get("fid")
    against = "" if real is None else f"; real held-out images: {real:.3g}"
    share = f"FID {fid:.3g}, of the codec's reconstructions alone {rfid:.3g}{against}"
    if real is not None and fid <= AS_REAL * real:
        return f"Nothing limits the samples as far as this evaluator sees ({share})."
    if rfid >= CODEC_LIMITS * fid:
        return f"What limits the samples is the codec ({share})."
    if rfid <= PRIOR_LIMITS * fid:
        return f"What limits the samples is the prior ({share})."
    return f"Codec and prior limit the samples about alike ({share})."


def _least_use(codec: Measured) -> float | None:
    return min((level["usage"] for level in codec.get("levels", []) if "usage" in level), default=None)


def _in_words(psnr: float) -> str:
    """Return a word on a PSNR: a scale of habit, not of measurement."""
    for least, words in ((35, "hard to tell from the originals"), (28, "close to the originals")):
        if psnr >= least:
            return words
    return "smoother than the originals" if psnr >= 20 else "a coarse likeness of the originals"


Row = tuple[str, str, str, str]
HEAD = ("what", "value", "compared with", "in words")


def figures(
    codec: Measured | None, prior: Measured | None, evaluation: Measured | None, *, flat_psnr: float | None = None
) -> tuple[Row, ...]:
    """Return rows of what was measured: name, value with unit, what it is compared with, and what it means.

    Args:
        codec: As in `verdict`.
        prior: As in `verdict`.
        evaluation: As in `verdict`.
        flat_psnr: PSNR in dB if each image shown were one colour, its own mean; None where that is not known.
    """
    rows = [*_codec_rows(codec or {}, flat_psnr), *_prior_rows(prior or {})]
    return (*rows, *_evaluation_rows(evaluation or {}))


def _codec_rows(codec: Measured, flat_psnr: float | None) -> list[Row]:
    rows: list[Row] = []
    if "psnr" in codec:
        error = 10 ** (-codec["psnr"] / 20)
        flat = "" if flat_psnr is None else f"{flat_psnr:.1f} dB if each image shown were one colour, its mean"
        rows.append(
            (
                "PSNR of held-out reconstructions",
                f"{codec['psnr']:.2f} dB",
                flat,
                f"more is better: {_in_words(codec['psnr'])}. A typical pixel is off by {error:.1%} of the range; "
                "6 dB more halve that. Below 20 coarse, above 35 hard to see; it forgives blur",
            )
        )
    elif "mse" in codec:
        rows.append(("squared error of held-out reconstructions", f"{codec['mse']:.5g}", "", "less is better"))
    if "ssim" in codec:
        rows.append(("SSIM", f"{codec['ssim']:.3f}", "1: the same image", "likeness of structure, window by window"))
    levels: Sequence[Measured] = codec.get("levels", [])
    for number, level in enumerate(levels):
        of = f" of level {number}" if len(levels) > 1 else ""
        size = level["num_codes"]
        used = f"a collapse below {COLLAPSED:.0%}"
        rows.append((f"codes in use{of}", f"{level['usage']:.1%} of {size}", used, "over all held-out images"))
        told = "as many codes as if all were used equally often"
        rows.append((f"perplexity{of}", f"{level['perplexity']:.1f}", f"at most {size}", told))
    return rows


def _prior_rows(prior: Measured) -> list[Row]:
    if "nats_per_token" not in prior:
        return []
    told = "less is better: how unlikely a code of a held-out image is to the prior. 0 is certainty"
    rows: list[Row] = [("nats per token", f"{prior['nats_per_token']:.4f}", _baselines(prior), told)]
    for number, level in enumerate(prior.get("levels", [])):
        rows.append((f"of level {number}", f"{level['nats_per_token']:.4f}", _baselines(level), ""))
    if "bits_per_dimension" in prior:
        told = "of the codes alone, for each number of an image; not a likelihood of pixels"
        rows.append(("code bits per dimension", f"{prior['bits_per_dimension']:.4f}", "", told))
    return rows


BASELINES = {
    "level_above": "the level above at that place",
    "previous_token": "the previous token alone",
    "unigram": "the code's frequency alone (unigram)",
    "uniform": "all codes alike (uniform)",
}


def _baselines(measured: Measured) -> str:
    known = [f"{measured[name]:.4f} {words}" for name, words in BASELINES.items() if measured.get(name) is not None]
    return "; ".join(known)


def _evaluation_rows(evaluation: Measured) -> list[Row]:
    budget, samples = evaluation.get("error_budget", {}), evaluation.get("samples", {})
    floor, rows = evaluation.get("held_out", {}).get("fid"), []
    real = "" if floor is None else f"{floor:.4g} real held-out images"
    judge = "distance from training images in the features of the evaluator; less is better"
    if budget.get("fid") is not None:
        rows.append(("FID of samples", f"{budget['fid']:.4g}", real, judge))
    if budget.get("rfid") is not None:
        rows.append(("rFID of reconstructions", f"{budget['rfid']:.4g}", real, "the codec's part of that"))
    for name, words in (("precision", "samples that look real"), ("recall", "real variety that is drawn")):
        if samples.get(name) is not None:
            rows.append((name, f"{samples[name]:.1%}", "100%", words))
    accuracy = samples.get("classification_accuracy") or {}
    if "fitted_to_samples" in accuracy:
        compared = f"{accuracy['fitted_to_images']:.1%} fitted to real images"
        told = "held-out images that a classifier names rightly which saw samples alone"
        rows.append(("classification accuracy score", f"{accuracy['fitted_to_samples']:.1%}", compared, told))
    return rows


KEYS = {
    "command": "what was typed",
    "data": "what it was trained on",
    "rows": "of the data",
    "num_images": "images measured",
    "mse": "mean squared error, values from -1 to 1",
    "psnr": "peak signal-to-noise ratio, dB",
    "psnr_range": "range that the PSNR is of",
    "ssim": "structural similarity, at most 1",
    "usage": "share of the codes in use, 0 to 1",
    "perplexity": "as many codes as if all were used alike",
    "num_codes": "codes of the level",
    "to_here": "decoded from the first levels up to this one",
    "without": "decoded from all levels but this one",
    "nats_per_token": "mean -log p of a held-out code",
    "bits_per_dimension": "bits of the codes for each number of an image",
    "unigram": "nats of each code's frequency alone",
    "previous_token": "nats given the code before alone",
    "level_above": "nats given the code of the level above alone",
    "uniform": "nats if all codes were alike: ln K",
    "fid": "Frechet distance of features from those of training images",
    "rfid": "the same of reconstructions",
    "fid_less_rfid": "the prior's part of the distance",
    "kid": "kernel distance of features, unbiased",
    "precision": "share of samples that look real",
    "recall": "share of real images within the samples' range",
    "density": "as precision, with less weight on outliers",
    "coverage": "as recall, with less weight on outliers",
    "inception_score": "of the embedded classifier",
    "fitted_to_samples": "classifier fitted to samples, on held-out images",
    "fitted_to_images": "the same fitted to images",
    "pixels_sha256": "of all pixels compared",
    "seed": "of the samples",
    "temperature": "of the samples",
    "guidance_scale": "of the samples",
    "num_threads": "threads it ran with",
    "format_version": "of the file",
}


def explained(key: str) -> str:
    """Return what a dotted key of a table means, as far as its last known part says; "" for others.

    >>> explained("levels.0.usage")
    'share of the codes in use, 0 to 1'
    """
    return next((KEYS[part] for part in reversed(key.split(".")) if part in KEYS), "")
