"""`resize-codebook`: codecs of other rates from one trained codec, by clustering its latents.

Encoder and decoder stay, the codebook is clustered anew (Seo and Kang 2024, "Rate-adaptive
quantization", section 3.3, cluster the codes of a trained codec; here the latents themselves are
clustered). Letters: D code dimension, K number of codes, N vectors, T tokens of an image.
"""

import math
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from stage1_vqvae.architecture import Architecture, VQVAEConfig
from stage1_vqvae.codecs import open_own_codec
from stage1_vqvae.data.loading import LoadedRows, load_rows
from stage1_vqvae.data.sources import Data, open_data_of
from stage1_vqvae.evaluate import ROWS_AT_ONCE, evaluate_codec
from stage1_vqvae.losses import reconstruction_terms, weighted_sum, weights_for
from stage1_vqvae.model import VQVAE, save_codec
from stage1_vqvae.quantizers import QUANTIZERS, Quantizer
from stage1_vqvae.quantizers.codebook import CodebookQuantizer
from stage1_vqvae.quantizers.lookup import kmeans, nearest_codes
from stage1_vqvae.quantizers.residual import ResidualQuantizer
from stage1_vqvae.resize_settings import ResizeCodebook, check_resize
from stage1_vqvae.settings import LossSettings
from vq_prior.core.disk.artifacts import new_folder, require_replaceable
from vq_prior.core.disk.components import WEIGHTS
from vq_prior.core.disk.records import TrainingRecord, command_line, public_name, read_record, write_record
from vq_prior.core.errors import NumericError, UsageError
from vq_prior.core.modality import Modality
from vq_prior.core.processes.runtime import start_runtime
from vq_prior.core.spec import CodeSpec
from vq_prior.core.training.optim import adamw, lr_at, set_learning_rate
from vq_prior.core.training.randomness import batch_rows, keyed_generator
from vq_prior.core.training.runs import require_free_space

MAX_IMAGES, MAX_VECTORS = 10_000, 2**20  # that many tell where latents lie, and fit in memory
ITERATIONS = 30  # of k-means; 100 gave at most 0.1 dB more on the digits (docs/log.md)
WARMUP_STEPS = 20


def resize_codebook(settings: ResizeCodebook) -> list[dict[str, Any]]:
    """Print rate and quality at each size, write the codec of a single one to OUT/vqvae, and return the table.

    Returns:
        One entry a row: `codes`, `what`, and what `evaluate_codec` found on the held-out images. The first is the codec
        as given.

    Raises:
        UsageError: If a setting is out of range, the codec has no codebook to resize, or OUT is not to be replaced.
        ArtifactError: If codec or data are missing or damaged.
        NumericError: If the loss or a gradient of the fine-tuning is not finite; nothing is written.
    """
    check_resize(settings)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("resize-codebook runs in one process; start it without a launcher")
    original = _resizable(open_own_codec(settings.codec), settings)
    final = _destination(settings, original)
    runtime = start_runtime("fp32")
    for note in (runtime.describe(), *original.notes):
        print(note, flush=True)
    data = open_data_of(settings, say=print, modality=original.modality, form=original.transform)
    rows = _rows_to_cluster(settings, original.spec, len(data.train))
    train = load_rows(data.train, original.modality, original.transform, num_workers=settings.num_workers)
    validation = load_rows(data.validation, original.modality, original.transform, num_workers=settings.num_workers)
    original.to(runtime.device)
    level = settings.level or 0
    num_vectors = len(rows) * original.spec.levels[level].num_tokens
    which = f" of level {level}" if len(original.spec.levels) > 1 else ""
    print(f"clustering {num_vectors} latent vectors{which} of {len(rows)} training images", flush=True)
    first = latents_of(original, train, rows, level)  # which do not depend on the codes of the level itself

    def latents(codec: VQVAE, number: int) -> Tensor:
        return first if number == level else latents_of(codec, train, rows, number)

    print(_heading(original.modality))
    table, codec = [_measured(original, level, validation, "as given")], original
    print(_line(table[-1], original), flush=True)
    for size in settings.codebook_size:
        codec = resized(original, size, latents, keyed_generator(settings.seed, size, "codebook resizing"), level)
        table.append(_measured(codec, level, validation, "resized"))
        print(_line(table[-1], codec), flush=True)
        if settings.steps is not None:
            _fine_tune(settings, codec, train)
            table.append(_measured(codec, level, validation, f"and tuned for {settings.steps} steps"))
            print(_line(table[-1], codec), flush=True)
    if final is None:
        print("nothing was written; one --codebook-size and --out RUN write that codec to RUN/vqvae")
    else:
        _write(settings, original, codec, data, table[-1]["measured"], final)
    return table


def _resizable(codec: VQVAE, settings: ResizeCodebook) -> VQVAE:
    """Return the codec if its codebook can be resized to every size asked for.

    Raises:
        UsageError: If its quantiser has no codebook of free vectors, or it has that size.
        ArtifactError: If a codebook would be too large.
    """
    a, levels = codec.architecture, len(codec.spec.levels)
    if settings.level is None and levels > 1:
        raise UsageError(f"--level must say which of the {levels} levels is resized, from 0 to {levels - 1}")
    if settings.level is not None and settings.level >= levels:
        raise UsageError(f"--level must be below {levels}, the number of the codec's levels, got {settings.level}")
    if not issubclass(QUANTIZERS[a.quantizer.name], CodebookQuantizer):
        able = [name for name in QUANTIZERS.names() if issubclass(QUANTIZERS[name], CodebookQuantizer)]
        raise UsageError(
            f"the codes of quantiser {a.quantizer.name} are no vectors that can be moved one by one; "
            f"only codebooks of {', '.join(able)} can be resized"
        )
    level = settings.level or 0
    for size in settings.codebook_size:
        if size == codec.spec.levels[level].num_codes:
            raise UsageError(f"--codebook-size must differ from the codec's own, which is {size}; leave it out")
        with_size(codec, level, size).check(f"--codebook-size {size}")
    return codec


def with_size(codec: VQVAE, level: int, size: int) -> Architecture:
    """Return the architecture of a codec of which one level has another number of codes."""
    a = codec.architecture
    sizes = [each.num_codes for each in codec.spec.levels]
    sizes[level] = size
    same = len(set(sizes)) == 1
    quantizer = replace(a.quantizer, num_codes=sizes[0], level_codes=None if same else tuple(sizes))
    return replace(a, quantizer=quantizer)


def _destination(settings: ResizeCodebook, original: VQVAE) -> Path | None:
    """Return where the codec goes, None if only the table is asked for; raises `UsageError` if that is taken."""
    if settings.out is None or len(settings.codebook_size) > 1:
        return None
    final = settings.out / "vqvae"
    if original.loaded_from is not None and original.loaded_from.resolve() == final.resolve():
        raise UsageError(f"{final} is the codec to be resized, which is kept; choose another --out")
    if (settings.out / "vqvae-training").exists():
        raise UsageError(f"{settings.out} holds a run of train-vqvae; choose another --out")
    require_replaceable(final, WEIGHTS, "codec")
    if (final / WEIGHTS).exists() and not settings.overwrite:
        raise UsageError(f"{final} exists; choose another --out or pass --overwrite")
    require_free_space(settings.out, 2 * sum(tensor.nbytes for tensor in original.state_dict().values()))
    return final


def _rows_to_cluster(settings: ResizeCodebook, spec: CodeSpec, num_train: int) -> NDArray[np.int64]:
    """Return the training rows whose latents are clustered, ascending: all of them, or as many as suffice, drawn.

    Raises:
        UsageError: If they have fewer vectors than a codebook is to have.
    """
    largest, tokens = max(settings.codebook_size), spec.levels[settings.level or 0].num_tokens
    count = min(num_train, MAX_IMAGES, max(1, MAX_VECTORS // max(level.num_tokens for level in spec.levels)))
    if largest > count * tokens:
        raise UsageError(
            f"--codebook-size must be at most {count * tokens}, the latent vectors of the {count} images that "
            f"are clustered, got {largest}"
        )
    return np.sort(keyed_generator(settings.seed, 0, "rows to cluster").permutation(num_train)[:count])


Latents = Callable[[VQVAE, int], Tensor]


def latents_of(codec: VQVAE, train: LoadedRows, rows: NDArray[np.int64], level: int) -> Tensor:
    """Return what a level of some images chooses its codes for, [N, D] float32, on the host.

    Latents of its grid, which depend on the codes of the coarser grids, less what the levels of that grid before it
    stand for.
    """
    grid, within = divmod(level, codec.architecture.quantizer.depth)
    parts = []
    for first in range(0, len(rows), ROWS_AT_ONCE):
        left = codec.latents_of(grid, train.batch(rows[first : first + ROWS_AT_ONCE]))
        for each in levels_of(codec.quantizers[grid])[:within]:
            left = left - each.embed(each.encode(left))
        parts.append(left.reshape(-1, codec.quantizer.code_dim).cpu())
    return torch.cat(parts)


def levels_of(quantizer: Quantizer) -> list[CodebookQuantizer]:
    """Return the codebooks of the quantiser of one grid, one a level."""
    return list(quantizer.levels) if isinstance(quantizer, ResidualQuantizer) else [quantizer]  # type: ignore[list-item]


@torch.no_grad()
def clustered(codebook: Tensor, vectors: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """Return a codebook [size, D] for latent vectors [N, D], N at least `size`, from one that was made for them.

    k-means that starts from the codes in use, the most used first. Where these are too few it also starts from latents
    drawn with the square of their distance to the nearest code as weight (Arthur and Vassilvitskii 2007,
    "k-means++"), which splits the codes that hold the most distortion. It never ends with more distortion than it
    starts with, so a larger codebook has at most that of the old one.
    """
    codebook, vectors = codebook.detach().float().cpu(), vectors.detach().float().cpu()
    codes = nearest_codes(vectors, codebook)
    use = torch.bincount(codes, minlength=codebook.shape[0])
    most_used_first = use.argsort(descending=True, stable=True)
    start = codebook[most_used_first[: min(size, int((use > 0).sum()))]]
    missing = size - start.shape[0]
    if missing:
        weights = (vectors - codebook[codes]).square().sum(1).double()
        weights += 1e-9 * weights.mean() + 1e-30  # so that `missing` of them are above 0, whatever the data
        drawn = rng.choice(len(vectors), size=missing, replace=False, p=(weights / weights.sum()).numpy())
        start = torch.cat([start, vectors[torch.from_numpy(drawn)]])
    return kmeans(vectors, size, rng, iterations=ITERATIONS, start=start)


def resized(codec: VQVAE, size: int, latents: Latents, rng: np.random.Generator, level: int = 0) -> VQVAE:
    """Return a codec with `size` codes in a level and the same encoder and decoder, in eval mode, on the same device.

    The levels behind that one are clustered anew, too: from what they were, for what is left over now.

    Args:
        codec: Whose levels are `CodebookQuantizer`s; left as it is.
        size: Number of codes.
        latents: Gives what a level of a codec chooses its codes for, [N, D], N at least its size; see `latents_of`.
        rng: Of the clustering.
        level: Which one.
    """
    result = VQVAE(VQVAEConfig(with_size(codec, level, size)), codec.preprocessing)
    result.encoder.load_state_dict(codec.encoder.state_dict())
    result.decoder.load_state_dict(codec.decoder.state_dict())
    result.to(codec.device).eval()
    ours, theirs = ([each for one in c.quantizers for each in levels_of(one)] for c in (result, codec))
    for number, (own, former) in enumerate(zip(ours, theirs, strict=True)):
        if number < level:
            own.load_state_dict(former.state_dict())
        else:
            placed = own.place(latents(result, number).to(codec.device))
            own.set_codes(clustered(former.table(), placed, own.num_codes, rng))
    return result


def _fine_tune(settings: ResizeCodebook, codec: VQVAE, train: LoadedRows) -> None:
    """Tune decoder and codebook to each other in place; the encoder is frozen.

    A step is a function of (seed, step) and of the state before it.
    """
    assert settings.steps is not None
    codec.train()
    codec.encoder.requires_grad_(False).eval()
    optimizer = adamw(codec.parameters(), learning_rate=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.99))
    weights = weights_for(LossSettings(), quantizer=codec.quantizer.loss_terms)
    for step in tqdm(range(settings.steps), unit="step", disable=None, leave=False):
        images = train.batch(batch_rows(len(train), settings.batch_size, settings.seed, step), codec.device)
        learning_rate = lr_at(
            step,
            steps=settings.steps,
            peak=settings.learning_rate,
            warmup_steps=min(WARMUP_STEPS, settings.steps // 10),
            decay_fraction=0.5,
        )
        set_learning_rate(optimizer, learning_rate)
        output = codec(images)
        loss = weighted_sum(reconstruction_terms(images, output.images, kind="mse") | output.loss, weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise NumericError(f"the loss is not finite at step {step + 1}; lower --learning-rate")
        optimizer.step()
        codec.quantizer.update(keyed_generator(settings.seed, step, "quantizer"))
    codec.requires_grad_(True).eval()


def _measured(codec: VQVAE, level: int, validation: LoadedRows, what: str) -> dict[str, Any]:
    result = evaluate_codec(codec, validation, device=codec.device)
    return {"codes": codec.spec.levels[level].num_codes, "what": what, "measured": result}


def rates(result: dict[str, Any], spec: CodeSpec) -> dict[str, float]:
    """Return the rate of a codec of this spec that `evaluate_codec` judged.

    Returns:
        `bits`: T log2 K, bits of an image at a fixed length a code. `entropy_coded_bits`: T times the entropy of the
        codes of the held-out images, what a coder that knows how often each occurs would take at least (too low where
        few images are held out for many codes). `bits_per_pixel`: `bits` over height times width.
    """
    pairs = list(zip(spec.levels, result["levels"], strict=True))
    bits = sum(level.num_tokens * math.log2(level.num_codes) for level, _ in pairs)
    entropy = sum(level.num_tokens * math.log2(max(1.0, use["perplexity"])) for level, use in pairs)
    return {"bits": bits, "entropy_coded_bits": entropy, "bits_per_pixel": bits / math.prod(spec.shape)}


def _columns(modality: Modality) -> dict[str, tuple[str, int, str]]:
    """Return heading, width and format of each measure in the table; the squared error only where there is no other."""
    measures = modality.quality.measures
    shown = {name: measure for name, measure in measures.items() if name != "mse"} or measures
    titles = {name: f"{name} ({each.unit})" if each.unit else name for name, each in shown.items()}
    return {name: (title, max(6, len(title)), shown[name].form) for name, title in titles.items()}


def _heading(modality: Modality) -> str:
    measured = "".join(f"  {title:>{width}}" for title, width, _ in _columns(modality).values())
    return f"  codes  bits/image  entropy-coded  bits/pixel{measured}  codes used"


def _line(row: dict[str, Any], codec: VQVAE) -> str:
    result, rate = row["measured"], rates(row["measured"], codec.spec)
    columns = _columns(codec.modality).items()
    measured = "".join(f"  {result[name]:>{width}{form}}" for name, (_, width, form) in columns)
    return (
        f"{row['codes']:>7}  {rate['bits']:>10.1f}  {rate['entropy_coded_bits']:>13.1f}  "
        f"{rate['bits_per_pixel']:>10.3f}{measured}  "
        f"{min(level['usage'] for level in result['levels']):>10.0%}  {row['what']}"
    )


def _write(
    settings: ResizeCodebook, original: VQVAE, codec: VQVAE, data: Data, measured: dict[str, Any], final: Path
) -> None:
    """Write the codec with its record and say what follows from its new identity."""
    old = None if original.loaded_from is None else read_record(original.loaded_from)
    command = command_line("resize-codebook", settings)
    record = TrainingRecord(
        format_version=1,
        command=f"{old.command}\n{command}" if old else command,
        data=public_name(settings.data),
        data_id=data.data_id,
        num_train=len(data.train),
        num_held_out=len(data.validation),
        measured=measured,
    )
    with new_folder(final) as staging:
        save_codec(codec, staging)
        write_record(staging, record)
    print(f"wrote {final} (codec {codec.codec_id[:12]}, made from {original.codec_id[:12]})")
    print(
        "its codes are new: codes must be extracted anew and a prior trained anew; those of the given codec do not fit"
    )
    codes = final.parent / "codes"
    print(f"next: vq-prior extract-codes --codec {final} --data {shlex.quote(settings.data)} --out {codes}", flush=True)
