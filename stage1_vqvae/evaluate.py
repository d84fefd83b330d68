"""Judging a codec: errors of its reconstructions and use of its codes over a whole set, and a sheet of both."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1_vqvae.codecs import open_codec
from stage1_vqvae.data.loading import LoadedRows, load_rows
from stage1_vqvae.data.sources import open_data_of, rows_called
from stage1_vqvae.modalities import measured_of
from stage1_vqvae.modalities.sheets import sheet_bytes
from stage1_vqvae.settings import Reconstruct, check
from vq_prior.core.config import pretty_json
from vq_prior.core.disk.artifacts import new_folder, require_replaceable, write_atomic
from vq_prior.core.disk.sheet_beside import sheet_place
from vq_prior.core.errors import UsageError
from vq_prior.core.modality import Modality
from vq_prior.core.spec import Codec
from vq_prior.core.training.code_use import perplexity, usage

ROWS_AT_ONCE, ROWS_OF_LEVELS = 256, 1024
RECONSTRUCTIONS = "reconstructions.json"


def evaluate_codec(
    codec: Codec, rows: LoadedRows, *, device: torch.device | str = "cpu", first_levels: int | None = None
) -> dict[str, Any]:
    """Return how well a codec keeps a whole set, and which codes it uses.

    Args:
        codec: In place on `device`.
        rows: The set, in the codec's form.
        device: Where the codec is.
        first_levels: Decode so many of the first levels alone; None is all. The use of codes is of all levels.

    Returns:
        `num_images`; the mean of each measure of this kind of data, of pictures `mse` ([-1, 1] scale), `psnr` (dB) and
        `ssim`, and what these are of, see `measured_of`; and per level, over the whole set, `usage` in [0, 1],
        `perplexity` and `num_codes`. Of several levels that can be left out, the means of the measures over up to 1,024
        rows: `to_here`, decoded from the first levels up to this one, and `without` it alone.
    """
    K = [level.num_codes for level in codec.spec.levels]
    counts = [torch.zeros(k, dtype=torch.int64) for k in K]
    measures = rows.modality.quality.measures
    scores: dict[str, list[Tensor]] = {name: [] for name in measures}
    for values in rows.batches(ROWS_AT_ONCE, device):
        codes = codec.encode(values)
        copies = codec.decode(codes if first_levels is None else codes[:first_levels])
        for total, level in zip(counts, codes, strict=True):
            total += torch.bincount(level.reshape(-1), minlength=total.numel()).cpu()
        for name, measure in measures.items():
            scores[name].append(measure.function(values, copies).double().cpu())
    means = {name: float(torch.cat(each).mean()) for name, each in scores.items()}
    levels: list[dict[str, Any]] = [
        {"usage": usage(n), "perplexity": perplexity(n), "num_codes": k} for n, k in zip(counts, K, strict=True)
    ]
    if codec.separable and len(levels) > 1:
        some = np.arange(min(len(rows), ROWS_OF_LEVELS)) * len(rows) // min(len(rows), ROWS_OF_LEVELS)
        for found, errors in zip(levels, level_errors(codec, rows, some, device=device), strict=True):
            found |= errors
    return {"num_images": len(rows), **means, **measured_of(rows.transform), "levels": levels}


def level_errors(
    codec: Codec, rows: LoadedRows, some: NDArray[np.int64], *, device: torch.device | str = "cpu"
) -> list[dict[str, dict[str, float]]]:
    """Return, of each level of a codec that can leave levels out, the means of the measures over some rows.

    Returns:
        `to_here`: of what is decoded from the first levels up to this one; `without`: from all but this one.
    """
    measures = rows.modality.quality.measures
    sums: list[dict[str, dict[str, float]]] = [
        {what: dict.fromkeys(measures, 0.0) for what in ("to_here", "without")} for _ in codec.spec.levels
    ]
    for first in range(0, len(some), ROWS_AT_ONCE):
        values = rows.batch(some[first : first + ROWS_AT_ONCE], device)
        codes = codec.encode(values)
        for number, of_level in enumerate(sums):
            left = tuple(None if n == number else level for n, level in enumerate(codes))
            for what, some_levels in (("to_here", codes[: number + 1]), ("without", left)):
                copies = codec.decode(some_levels)
                for name, measure in measures.items():
                    of_level[what][name] += float(measure.function(values, copies).double().sum()) / len(some)
    return sums


def reconstructed(codec: Codec, values: Tensor, first_levels: int | None = None) -> Tensor:
    """Return what the codec makes of values [B, C, *shape], on its device; `first_levels` decodes so many alone."""
    codes = codec.encode(values)
    return codec.decode(codes if first_levels is None else codes[:first_levels])


def require_levels(codec: Codec, first_levels: int | None) -> None:
    """Raise `UsageError` unless a codec has so many levels, and can be decoded from them; None is all."""
    count = len(codec.spec.levels)
    if first_levels is None:
        return
    if not 1 <= first_levels <= count:
        raise UsageError(f"--first-levels must be between 1 and {count}, the codec's levels, got {first_levels}")
    if first_levels < count and not codec.separable:
        raise UsageError("--first-levels does not apply to this codec, whose levels cannot be decoded apart")


def summary(result: dict[str, Any], modality: Modality) -> str:
    """Return one line on what `evaluate_codec` found."""
    of_levels = next((name for name in ("psnr", *modality.quality.measures) if name in modality.quality.measures), "")
    use = ", ".join(
        f"{level['usage']:.0%} of {level['num_codes']} codes used, perplexity {level['perplexity']:.1f}"
        + (_of_level(level, of_levels, modality) if "to_here" in level else "")
        for level in result["levels"]
    )
    measured = ", ".join(
        f"{name} {result[name]:{measure.form}}" + (f" {measure.unit}" if measure.unit else "")
        for name, measure in modality.quality.measures.items()
    )
    return f"{result['num_images']} held-out {rows_called(modality)}: {measured}; {use}"


def _of_level(level: dict[str, Any], name: str, modality: Modality) -> str:
    """Return in words the quality with the levels up to this one, and with all levels except it."""
    form = modality.quality.measures[name].form
    return f" ({name} {level['to_here'][name]:{form}} up to this level, {level['without'][name]:{form}} without it)"


def reconstruct(settings: Reconstruct) -> Path:
    """Write reconstructions of held-out rows: DIR/000000.png ... (of their kind's extension), and a sheet, DIR.png.

    A picture shows the original beside its reconstruction; other files hold the reconstruction alone.
    `reconstructions.json` says of which codec and data they are.

    Raises:
        UsageError: If a setting is out of range, or DIR exists and is not to be replaced.
        ArtifactError: If codec or data are missing or damaged.
    """
    check(settings)
    former = settings.out / "grid.png"  # of older versions
    marker = former.name if former.exists() else RECONSTRUCTIONS
    require_replaceable(settings.out, marker, "reconstructions", overwrite=settings.overwrite)
    if (settings.out / marker).exists() and not settings.overwrite:
        raise UsageError(f"{settings.out} exists; choose another --out or pass --overwrite")
    sheet = sheet_place(settings.out, settings.sheet)
    codec = open_codec(settings.codec)
    require_levels(codec, settings.first_levels)
    modality, called = codec.modality, rows_called(codec.modality)
    for note in (*codec.notes, *([sheet.note] if sheet.note else [])):
        print(note)
    data = open_data_of(settings, say=print, modality=modality, form=codec.transform)
    if settings.num_images > len(data.validation):
        print(f"the data holds out {len(data.validation)} {called}, fewer than the {settings.num_images} asked for")
    some = data.validation.subset(range(min(settings.num_images, len(data.validation))))
    rows = load_rows(some, modality, codec.transform, num_workers=settings.num_workers)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    codec.to(device)
    originals = rows.batch(range(len(rows)), device)
    copies = reconstructed(codec, originals, settings.first_levels)
    show, files, to_stored = modality.show, modality.files, modality.values.to_stored
    what = "reconstructions"
    with new_folder(settings.out, manifest=False) as staging:
        for number, pair in enumerate(zip(to_stored(originals), to_stored(copies), strict=True)):
            both = show.beside(*pair)
            what = what if both is None else "pairs (original left, reconstruction right)"
            file = files.encode(pair[1] if both is None else both)
            write_atomic(staging / f"{number:06d}{files.extension}", file, durable=False)
        record = {"format_version": 1, "codec_id": codec.codec_id, "data_id": data.data_id, "num_images": len(rows)}
        if settings.first_levels is not None:
            record["first_levels"] = settings.first_levels
        write_atomic(staging / RECONSTRUCTIONS, pretty_json(record), durable=False)
        sheet.write(sheet_bytes(show.pairs(originals, copies)))
    some_levels = f" from the first {settings.first_levels} of {len(codec.spec.levels)} level(s)"
    of = "" if settings.first_levels is None else some_levels
    print(summary(evaluate_codec(codec, rows, device=device, first_levels=settings.first_levels), modality))
    print(f"wrote {len(rows)} {what}{of} to {settings.out}{sheet.in_words}")
    return settings.out
