"""The pictures of a report, drawn from the finished parts of a RUN: samples, copies, levels, codes, completions.

Letters: n samples, C channels, K codes, B rows.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stage1_vqvae.modalities.sheets import pictures_of_sheet, png_bytes, to_picture
from stage2_prior.sampling_settings import temperature_text
from vq_prior.core.disk.code_store import INDEX, CodeStore, shard_ranges
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.judge.page import LARGE_OF_TWO, SMALL, Section, Tile, picture, sheet_tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vq_prior.core.spec import Codec
    from vq_prior.model.pipeline import VQPriorPipeline

    Pixels = NDArray[np.uint8]

SAMPLES, SAMPLES_OF_LARGE = 40, 16
PAIRS_SHOWN, PAIRS_IN_SHEET, PAIR_COLUMNS = 20, 32, 8  # the last two as training draws them
MOST_CODES, COMPLETED, OF_ONE = 512, 6, 8
CODES_AT_ONCE = 64
SEED = 0


def samples(pipeline: "VQPriorPipeline", codes: Path) -> Section | None:
    """Return the first samples of seed 0, those that `vq-prior generate` draws, with their likelihood.

    None where the prior draws only part of the levels and the code store that has the others is gone.
    """
    names, spec = pipeline.index.label_names, pipeline.codec.spec
    count = SAMPLES if max(spec.shape) <= SMALL else SAMPLES_OF_LARGE
    labels, given = list(names) or None, None
    if pipeline.prior.layout.given_levels:
        from vq_prior.draw.given_codes import open_given

        if not (codes / INDEX).is_file():
            return None
        known = open_given(codes, pipeline.index, pipeline.prior.layout.given_levels)
        assert known is not None
        given = known.tokens(pipeline.prior.layout, range(count))
        labels = [names[number] for number in known.classes(pipeline.index) or []] or labels
    drawn = pipeline(count, labels=labels, given=given, seed=SEED, output_type="pt")
    told = nats_of(pipeline, drawn.codes, drawn.labels)
    tiles = []
    for number, pixels in enumerate(pipeline.codec.modality.show.pictures(drawn.drawn)):
        label = names[drawn.labels[number]] if drawn.labels else ""
        about = f"seed {SEED}, sample {number}: {told[number]:.3f} nats per token"
        tiles.append(Tile((picture(_png(pixels)),), label, about))
    sampling = pipeline.index.sampling
    text = (
        f"The first {count} of seed {SEED}, temperature {temperature_text(sampling.temperature)}, guidance "
        f"{sampling.guidance_scale:g}; nothing was picked. A click shows one larger, with its likelihood: nats per "
        f"token under the prior, at temperature 1 without guidance, {min(told):.2f} to {max(told):.2f} here."
    )
    return Section("Samples", text=text, tiles=tiles)


def nats_of(pipeline: "VQPriorPipeline", codes: tuple[Tensor, ...], labels: Sequence[int] | None) -> list[float]:
    """Return the nats per token of samples by their codes, each under its class; without labels under none."""
    from stage2_prior.likelihood import score_codes

    count, null = len(codes[0]), pipeline.prior.null_label
    classes = torch.full((count,), null) if labels is None else torch.tensor(labels, dtype=torch.int64)
    return [float(nats) for nats in score_codes(pipeline.prior, codes, classes).nats_per_token]


def _png(pixels: "Pixels") -> bytes:
    return png_bytes(to_picture(pixels))


def pairs(sheet: bytes, num_held_out: int, *, in_db: bool) -> tuple[list[Tile], float | None]:
    """Return the held-out images of a training's sheet, each above its reconstruction, and the PSNR of flat images.

    Args:
        sheet: The PNG file.
        num_held_out: Images that were held out.
        in_db: Whether a PSNR of the pixels means something.

    Returns:
        The tiles, or the sheet as it is where it cannot be taken apart; and the mean PSNR in dB if each image were one
        colour, its own mean. None where that means nothing.
    """
    count = min(PAIRS_IN_SHEET, num_held_out)
    blocks = -(-count // PAIR_COLUMNS)
    pixels = pictures_of_sheet(sheet, columns=PAIR_COLUMNS, rows=2 * blocks) if count else None
    if pixels is None:
        return [sheet_tile(sheet, "held-out images, each above its reconstruction")], None
    of_blocks = pixels.reshape(blocks, 2, PAIR_COLUMNS, *pixels.shape[1:])
    originals, copies = (of_blocks[:, part].reshape(-1, *pixels.shape[1:])[:count] for part in (0, 1))
    tiles = []
    for original, copy in zip(originals[:PAIRS_SHOWN], copies[:PAIRS_SHOWN], strict=True):
        near = f"{_psnr(original, copy):.1f} dB" if in_db else ""
        about = "A held-out image and its reconstruction" + (f": PSNR {near}" if near else "")
        both = tuple(picture(_png(each), large=LARGE_OF_TWO) for each in (original, copy))
        tiles.append(Tile(both, near, about))
    if not in_db:
        return tiles, None
    flat = [np.broadcast_to(each.mean(axis=(0, 1)), each.shape) for each in originals.astype(np.float64)]
    return tiles, float(np.mean([_psnr(one, other) for one, other in zip(originals, flat, strict=True)]))


def _psnr(first: "NDArray[Any]", second: "NDArray[Any]") -> float:
    error = np.square(first.astype(np.float64) - second.astype(np.float64)).mean() / 255**2
    return float(-10 * np.log10(max(error, 1e-12 / 4)))


def levels(codec: "Codec", codes: Path) -> Section | None:
    """Return what the first levels of held-out codes show, one level more a column; None of a single level."""
    count = len(codec.spec.levels)
    if count == 1 or not codec.separable or (held_out := _held_out(codec, codes)) is None:
        return None
    grids, _ = held_out
    drawn = torch.stack([codec.decode(grids[: n + 1]) for n in range(count)], dim=1).flatten(0, 1)
    text = f"A row is a held-out image: from the codes of its first level alone, and so on to all {count} levels."
    words = [f"level 0 to {n}" if n else "level 0" for n in range(count)]
    tiles = _tiles(codec, drawn, words * len(grids[0]), columns=count)
    return Section("Levels", text=text, tiles=tiles, columns=count)


def _tiles(codec: "Codec", values: Tensor, words: Sequence[str], *, columns: int) -> list[Tile]:
    pixels = codec.modality.show.pictures(values)
    return [Tile((picture(_png(each), columns=columns),), about=told) for each, told in zip(pixels, words, strict=True)]


def _held_out(codec: "Codec", codes: Path) -> tuple[tuple[Tensor, ...], dict[str, Any]] | None:
    """Return the codes of some held-out rows, a grid [B, *grid] a level, and the rows; None without a store of them."""
    if not (codes / INDEX).is_file():
        return None
    store = CodeStore.open(codes, "validation")
    if store.index.codec.id != codec.codec_id or not len(store):
        return None
    rows = store.rows(np.linspace(0, len(store) - 1, min(COMPLETED, len(store)), dtype=np.int64))
    grids = tuple(torch.from_numpy(rows[f"codes.{n}"].astype(np.int64)) for n in range(len(codec.spec.levels)))
    return grids, {**rows, "labelled": store.labelled}


def atlas(codec: "Codec", codes: Path) -> Section:
    """Return a picture of each code, decoded where every cell around has that code too; the most used codes first."""
    number, level = len(codec.spec.levels) - 1, codec.spec.levels[-1]
    counts = _counts(codes, number, level.num_codes)
    order = np.arange(level.num_codes) if counts is None else np.argsort(-counts, kind="stable")
    shown = torch.from_numpy(order[:MOST_CODES].copy())
    drawn = torch.cat([middles(codec, some) for some in shown.split(CODES_AT_ONCE)])
    text = f"{len(shown)} of {level.num_codes} codes, each where its neighbours are the same code"
    if number:
        text += ", of the finest level; the coarser ones have code 0"
    if counts is not None:
        text += f"; the most used first. {int((counts > 0).sum())} of them occur in the training images"
    sheet = png_bytes(codec.modality.show.sheet(drawn, columns=32))
    return Section("Codebook atlas", text=f"{text}.", tiles=[sheet_tile(sheet, "codes")])


def _counts(codes: Path, number: int, num_codes: int) -> Any:
    """Return how often each code of a level occurs in the training rows of a store, [K]; None without a store."""
    if not (codes / INDEX).is_file():
        return None
    store = CodeStore.open(codes)
    counts = np.zeros(num_codes, dtype=np.int64)
    for rows in shard_ranges(len(store)):
        values = store.rows(np.arange(rows.start, rows.stop))[f"codes.{number}"]
        counts += np.bincount(values.reshape(-1), minlength=num_codes)
    return counts


def middles(codec: "Codec", codes: Tensor) -> Tensor:
    """Return the middle (two cells a side) of the value whose cells all hold one code of the finest level, for each
    code; coarser codes are 0.

    [n, C, *shape of the middle].
    """
    level = codec.spec.levels[-1]
    coarser = [torch.zeros((len(codes), *other.grid), dtype=torch.int64) for other in codec.spec.levels[:-1]]
    filled = codes.reshape(-1, *(1 for _ in level.grid)).expand(-1, *level.grid)
    values = codec.decode((*coarser, filled))
    for axis, (size, cells) in enumerate(zip(codec.spec.shape, level.grid, strict=True), start=2):
        length = min(size, 2 * -(-size // cells))
        values = values.narrow(axis, (size - length) // 2, length)
    return values


def completions(pipeline: "VQPriorPipeline", codes: Path) -> Section | None:
    """Return held-out images as their codes show them, each beside images that go on from the upper half of these."""
    rows = pipeline.index.spec.levels[0].grid[0] // 2
    if rows < 1 or (held_out := _held_out(pipeline.codec, codes)) is None:
        return None
    grids, chosen = held_out
    layout, each = pipeline.prior.layout, OF_ONE - 1
    # A row whose codes the prior has no tokens for cannot be gone on from.
    of_each = [tuple(grid[n : n + 1] for grid in grids) for n in range(len(grids[0]))]
    fitting = [n for n, codes in enumerate(of_each) if _has_tokens(layout.given_rows, codes, rows)]
    if not fitting:
        return None
    grids = tuple(grid[fitting] for grid in grids)
    given = layout.given_rows(grids, rows).repeat_interleave(each, dim=0)
    names = pipeline.index.label_names
    labels = [names[n] for n in chosen["label"][fitting].repeat(each)] if chosen["labelled"] and names else None
    drawn = pipeline(len(given), labels=labels, given=given, seed=SEED, output_type="pt")
    told = nats_of(pipeline, drawn.codes, drawn.labels)
    originals = pipeline.codec.decode(grids)
    strips, words = [], []
    for n in range(len(fitting)):
        own = slice(n * each, (n + 1) * each)
        strips.append(torch.cat([originals[n : n + 1], drawn.drawn[own]]))
        name = f"{labels[n * each]}: " if labels else ""
        words.append(f"{name}a held-out image as its codes show it")
        words += [f"{name}seed {SEED}, sample {k}: {told[k]:.3f} nats per token" for k in range(own.start, own.stop)]
    text = "Left a held-out image as its codes show it; the others keep the upper half of its codes."
    tiles = _tiles(pipeline.codec, torch.cat(strips), words, columns=OF_ONE)
    return Section("Completions", text=text, tiles=tiles, columns=OF_ONE)


def _has_tokens(given_rows: Callable[[tuple[Tensor, ...], int], Tensor], codes: tuple[Tensor, ...], rows: int) -> bool:
    try:
        given_rows(codes, rows)
    except (UsageError, ArtifactError):
        return False
    return True
