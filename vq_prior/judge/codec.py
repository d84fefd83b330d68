"""Examination of a codec and of codes: is there anything wrong with stage one?

Every rule is a threshold on something measured; the thresholds stand here, above what uses them.

Letters: n rows, T tokens of a sequence, K codes of a level.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1_vqvae.collapse import COLLAPSED
from stage1_vqvae.modalities import measured_of
from stage1_vqvae.modalities.pictures.quality import mse
from vq_prior.core.training.code_use import perplexity
from vq_prior.judge.finding import Examined, Finding

if TYPE_CHECKING:
    from vq_prior.core.spec import Codec

Codes = tuple[NDArray[np.generic], ...]

FEW_IMAGES = 1000
EXPLAINED = 0.5  # share of the images' variance that a trained codec keeps at least
DEAD_LEVEL = 0.01  # of the error, which exchanging the codes of a level adds
FLIPS = 0.08  # of the codes, between float32 and bfloat16
AGREEMENT, SAME_CODEC = 0.998, 0.5  # of a store's codes with the codec's own
REPEATED = 0.5  # of the rows
ROWS_AT_ONCE = 256
OF_FEW_CODES = (
    "revive dead codes (train-vqvae --quantizer.revive-below 0.05) and start on the data (--quantizer.start kmeans) "
    "where the quantiser has such a codebook, else take fewer codes, or another quantiser (--quantizer.name ema)"
)


def examine_codec(codec: "Codec", train: Tensor, images: Tensor) -> Examined:
    """Return how a codec does on values of its own form, [n, C, *shape] each.

    Args:
        codec: In place.
        train: Values that its codes are counted on, and whose mean it has to beat.
        images: Held-out values that its errors are measured on.
    """
    result = Examined()
    codes = codec.encode(images)
    copies = codec.decode(codes).cpu()
    variance = float((images - train.mean(dim=0)).square().mean()) or 1.0
    explained = 1 - float(mse(images, copies).mean()) / variance
    measures = {name: measure for name, measure in codec.modality.quality.measures.items() if name == "psnr"}
    result.measured |= {name: float(measure.function(images, copies).mean()) for name, measure in measures.items()}
    result.measured |= measured_of(codec.transform)
    result.measured["variance_kept"] = explained
    alone = _without_quantiser(codec, images)
    if alone is not None:
        result.measured["variance_kept_without_quantiser"] = 1 - float(mse(images, alone).mean()) / variance
    uses = _uses(codec, train)
    result.measured["levels"] = uses
    ablated = _ablated(codec, codes, images, copies)
    for use, added in zip(uses, ablated, strict=True):
        use["error_added_by_exchanging_codes"] = added
    half = _half_precision(codec, images, codes, copies)
    if half is not None:
        result.measured["half_precision"] = half
    result.findings += _codec_findings(explained, result.measured.get("variance_kept_without_quantiser"), uses)
    if half is not None and half["flips"] > FLIPS:
        result.findings.append(
            Finding(
                "half-precision flips",
                f"{half['flips']:.1%} of the codes change with the encoder in bfloat16 ({half['psnr_lost']:.2f} dB)",
                "extract codes in float32, as extract-codes does; fewer or farther apart codes are more robust",
            )
        )
    return result


def _without_quantiser(codec: "Codec", images: Tensor) -> Tensor | None:
    """Return what the decoder makes of latents that were not quantised; None where these are no vectors of codes."""
    latent = codec.latent
    if latent is None or not latent.decodes_latents:
        return None
    return torch.cat([latent.decode_latents(latent.encode_latents(part)) for part in images.split(ROWS_AT_ONCE)]).cpu()


def _uses(codec: "Codec", train: Tensor) -> list[dict[str, Any]]:
    counts = [torch.zeros(level.num_codes, dtype=torch.int64) for level in codec.spec.levels]
    for part in train.split(ROWS_AT_ONCE):
        for total, codes in zip(counts, codec.encode(part), strict=True):
            total += torch.bincount(codes.reshape(-1).cpu(), minlength=len(total))
    return [_use(total.numpy()) for total in counts]


def _use(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Return `used` codes, how many `possible` ones there are among so many tokens, and their perplexity."""
    tokens, K = int(counts.sum()), len(counts)
    # A code that came up once in a hundred times its share is as good as dead.
    used = int((counts > tokens / K / 100).sum())
    spread = perplexity(torch.from_numpy(counts))
    return {"used": used, "possible": min(K, tokens), "num_codes": K, "perplexity": spread}


def _ablated(codec: "Codec", codes: tuple[Tensor, ...], images: Tensor, copies: Tensor) -> list[float]:
    """Return, of each level, how much its codes matter: relative error added when images exchange them."""
    error = float(mse(images, copies).mean()) or 1e-12
    added = []
    for number in range(len(codes)):
        exchanged = tuple(level.roll(1, dims=0) if n == number else level for n, level in enumerate(codes))
        added.append(float(mse(images, codec.decode(exchanged).cpu()).mean()) / error - 1)
    return added


def _half_precision(codec: "Codec", images: Tensor, codes: tuple[Tensor, ...], copies: Tensor) -> dict[str, Any] | None:
    """Return the share of codes that change in bfloat16, and the dB that costs; None for codecs of other libraries."""
    if codec.latent is None:
        return None
    changed = codec.latent.encode_in_bfloat16(images)
    different = torch.cat([(one != other).reshape(-1) for one, other in zip(changed, codes, strict=True)])
    flips = float(different.double().mean())
    lost = _decibels(images, copies) - _decibels(images, codec.decode(changed).cpu())
    return {"flips": flips, "psnr_lost": float(lost)}


def _decibels(images: Tensor, copies: Tensor) -> Tensor:
    """Return the mean signal-to-noise ratio of copies in dB, up to a constant: differences of it mean something."""
    return 10 * torch.log10(4.0 / mse(images, copies).clamp_min(1e-12)).mean()


def _codec_findings(share: float, alone: float | None, uses: list[dict[str, Any]]) -> list[Finding]:
    collapsed = [number for number, use in enumerate(uses) if is_collapsed(use)]
    untrained = share < EXPLAINED and (share < 0 or not collapsed)
    if alone is not None and alone >= EXPLAINED:
        untrained = False
    findings = []
    if untrained:
        findings.append(
            Finding(
                "codec not trained",
                f"reconstructions keep {max(share, 0):.0%} of the images' variance"
                + ("" if alone is None else f", {max(alone, 0):.0%} without the quantiser"),
                "train it longer (train-vqvae --steps); check that encoder and decoder are of one training",
            )
        )
    elif share < EXPLAINED and not collapsed:
        findings.append(
            Finding(
                "codec loses the images in its quantiser",
                f"reconstructions keep {max(share, 0):.0%} of the images' variance, {alone:.0%} without the quantiser",
                f"train longer, take more codes (--quantizer.num-codes), or {OF_FEW_CODES}",
            )
        )
    return findings + level_findings(uses)


def is_collapsed(use: dict[str, Any]) -> bool:
    """Return whether fewer than a tenth of the possible codes are used, or as good as one."""
    return use["used"] < COLLAPSED * use["possible"] or (use["perplexity"] < 2 and use["num_codes"] > 4)


def level_findings(uses: list[dict[str, Any]]) -> list[Finding]:
    """Return what is wrong with the use of the codes of each level."""
    findings = []
    for number, use in enumerate(uses):
        text = f"{use['used']} of {use['num_codes']} codes in use, perplexity {use['perplexity']:.1f}"
        remedy = OF_FEW_CODES
        if len(uses) > 1 and (is_collapsed(use) or use.get("error_added_by_exchanging_codes", 1.0) < DEAD_LEVEL):
            added = use.get("error_added_by_exchanging_codes")
            cost = "" if added is None else f"; exchanging its codes adds {added:.1%} to the error"
            fatal = all(is_collapsed(each) for each in uses)
            findings.append(Finding("dead level", f"level {number}: {text}{cost}", f"leave it out, or {remedy}", fatal))
        elif is_collapsed(use):
            findings.append(Finding("collapsed codebook", text, remedy, fatal=True))
    return findings


def examine_codes(train: Codes, held_out: Codes, num_codes: Sequence[int]) -> Examined:
    """Return the use and the statistics of codes, a tuple of [n, *grid] for the rows of each split.

    Entropies are of training rows, in nats a token; `least` and `most` are of single positions.
    """
    result = Examined()
    levels = []
    for level, K in zip(train, num_codes, strict=True):
        flat = level.reshape(len(level), -1)
        counts = np.bincount(flat.ravel().astype(np.int64), minlength=K)
        some = np.unique(np.linspace(0, flat.shape[1] - 1, min(flat.shape[1], 256), dtype=np.int64))
        positions = [_entropy(np.bincount(flat[:, position].astype(np.int64))) for position in some]
        of_position = {"mean": math.fsum(positions) / len(positions), "least": min(positions), "most": max(positions)}
        levels.append(_use(counts) | {"entropy": _entropy(counts), "entropy_of_a_position": of_position})
    rows, unseen = joined(train), joined(held_out)
    seen = {row.tobytes() for row in rows}
    repeated = sum(row.tobytes() in seen for row in unseen) / max(1, len(unseen))
    result.measured = {
        "num_train": len(rows),
        "num_held_out": len(unseen),
        "levels": levels,
        "distinct_rows": len(seen) / len(rows),
        "held_out_rows_in_training": repeated,
    }
    result.findings = [*level_findings(levels), *_row_findings(len(rows), len(seen) / len(rows), repeated)]
    return result


def _row_findings(count: int, distinct: float, repeated: float) -> list[Finding]:
    findings = []
    if count < FEW_IMAGES:
        findings.append(
            Finding(
                "too little data",
                f"{count} training images; a prior learns fewer than {FEW_IMAGES} by heart",
                "gather more images, take views of them (extract-codes --views ten-crop), or start from another MODEL "
                "(train-prior --from MODEL)",
            )
        )
    if distinct < REPEATED:
        findings.append(
            Finding(
                "repeated data",
                f"only {distinct:.0%} of the training rows of codes are different from each other",
                "remove copies from the data; if there are none, the codec tells images apart too little",
            )
        )
    elif repeated > REPEATED:
        findings.append(
            Finding(
                "held-out images in the training set",
                f"{repeated:.0%} of the held-out rows of codes are rows of the training set, too",
                "hold out images that have no copy in the training set, or the held-out numbers mean nothing",
            )
        )
    return findings


def _entropy(counts: NDArray[np.int64]) -> float:
    return math.log(max(1e-12, perplexity(torch.from_numpy(counts))))


def joined(codes: Codes) -> NDArray[np.generic]:
    """Return the codes of all levels side by side, [n, T]."""
    return np.ascontiguousarray(np.concatenate([level.reshape(len(level), -1) for level in codes], axis=1))


def compare_codes(stored: Codes, own: Codes, source: str) -> Examined:
    """Return whether a store's codes are those that a codec gives the same images."""
    agreement = float(np.mean(joined(stored).astype(np.int64) == joined(own).astype(np.int64)))
    result = Examined({"agreement": agreement})
    if agreement < SAME_CODEC:
        result.findings.append(
            Finding(
                "wrong codec",
                f"{agreement:.1%} of the codes in {source} are those that this codec gives the same images",
                "extract the codes anew with this codec (extract-codes), and train the prior on them",
            )
        )
    elif agreement < AGREEMENT:
        result.findings.append(
            Finding(
                "half-precision flips",
                f"{1 - agreement:.1%} of the codes in {source} are not those that this codec gives in float32",
                "extract the codes anew in float32 (extract-codes), on the machine that will use them",
            )
        )
    return result
