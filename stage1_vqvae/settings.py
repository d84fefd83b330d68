"""Settings of the commands of stage one, and the values they take when left out.

Imports neither torch nor transformers. `None` means "chosen for your data and
machine"; `resolve` makes every such choice, as a pure function.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from stage1_vqvae.factors import ALLOWED, Downsampling, as_one, can_be_taken, default_downsampling, factors_of, grid_of
from stage1_vqvae.modalities import MODALITIES, in_form, own_settings, with_own_settings
from stage1_vqvae.modalities.pictures.settings import CodecSize, PictureSize, chosen_size
from stage1_vqvae.quantizer_settings import (
    QuantizerSettings,
    check_quantizer_settings,
    default_num_codes,
    fixed_code_dim,
)
from vq_prior.core.errors import UsageError
from vq_prior.core.modality import Facts, Form, KindSettings, Modality
from vq_prior.core.settings import (
    DATA_HELP,
    AcceptChanges,
    DryRun,
    Free,
    ImageColumn,
    LabelColumn,
    NumWorkers,
    Overwrite,
    Place,
    Seed,
    Settings,
    Sheet,
    Threads,
    Unsaid,
    Within,
    check_ranges,
    require_data,
    require_folder_to_write,
)
from vq_prior.core.spec import MAX_LEVELS, by
from vq_prior.core.training.tracking import ReportTo, require_tracker

FEW_IMAGES = 5000
LEVEL_DROPOUT = (0.05, 0.2)  # of depth 2, and deeper
TINY = 16  # longest side in pixels of images that need small networks and no bf16


@dataclass
class ModelSettings(Settings):
    """The encoder and the decoder."""

    channels: int | None = None
    """Of the data: of pictures 1 for grey, 3 for colour; left out: as the data are, 1 if every image is grey, else
    3."""
    downsampling: int | tuple[int, ...] | None = None
    """Pixels of one code along every axis, or one number an axis; each is taken in steps of its prime factors, of at
    most 13. Left out: so that images up to 48 px get a grid of at most 8x8 and larger ones of at most 16x16."""
    width: Annotated[int | None, Within(8, 4096, multiple=8)] = None
    """Channels at the resolution of the code grid, a multiple of 8, and of 32 with attention."""
    residual_width: Annotated[int | None, Within(8, 4096, multiple=8)] = None
    """Channels inside a residual branch, a multiple of 8; left out: a quarter of the width, with bottleneck half."""
    num_residual_blocks: Annotated[int | None, Within(0, 64)] = None
    """Residual blocks at the resolution of the code grid, with --levels of the coarsest, of the encoder, and of the
    decoder; left out: 2, with bottleneck 3."""
    network: Literal["residual", "bottleneck", "sonnet"] = "residual"
    """residual (normalised blocks that start at zero), bottleneck (more of them at the code grid, with two 1x1
    convolutions each, and fewer channels elsewhere: nearer to the images for as many multiplications) or sonnet (the
    plain network of van den Oord et al. 2017, as in DeepMind's CIFAR-10 notebook: no norms; codes of 64 numbers, two
    blocks, width 128, residual width 32)."""
    attention: bool = False
    """One self-attention among the residual blocks of the encoder, and of the decoder; not with sonnet."""
    blocks_per_resolution: Annotated[int, Within(0, 64)] = 0
    """Residual blocks at each resolution between image and code grid, of the encoder, and of the decoder; not with
    sonnet."""
    grid_factor: int | tuple[int, ...] = 2
    """With --levels: cells of a grid along every axis, or one number an axis, for one of the next coarser grid."""


@dataclass
class LossSettings(Settings):
    """Terms of the training loss and their weights."""

    reconstruction: Literal["mse", "l1"] = "mse"
    """Distance between image and reconstruction."""
    reconstruction_weight: Annotated[float, Within(0, 10**6)] = 1.0
    """Weight of the reconstruction term."""
    commitment_weight: Annotated[float, Within(0, 10**6)] = 0.25
    """Weight of the term that keeps latents near their code (beta of van den Oord et al. 2017)."""
    coarse_weight: Annotated[float, Within(0, 10**6)] = field(default=0.3, metadata={"before": 0.0})
    """With --levels: weight of the error of what the coarser grids make alone, so that these can be decoded without the
    finer ones."""
    codebook_weight: Annotated[float, Within(0, 10**6)] = 1.0
    """Weight of the term that moves a gradient codebook to its latents; ema has none."""
    entropy_weight: Annotated[float, Within(0, 10**6)] = 0.1
    """Weight of the entropy term, where --quantizer.entropy-temperature asks for one."""
    kl_weight: Annotated[float, Within(0, 10**6)] = 0.0005
    """Weight of the divergence of the gumbel quantiser's choice from the uniform one, in nats a code."""
    perceptual: str | None = None
    """Perceptual term, which keeps texture where a squared error blurs: own (features of a small network that is fitted
    to the data's classes first), turns (the same without classes), random, focal-frequency, patches, lpips-vgg,
    lpips-alex, lpips-squeeze, or an image model of transformers, a folder or Hub id."""
    perceptual_weight: Annotated[float | None, Within(0, 10**6)] = None
    """Weight of the perceptual term; left out: that of its kind."""
    perceptual_start: Annotated[float, Within(0, 1)] = 0.5
    """Share of the steps after which the perceptual term joins."""
    adversarial: Literal["relativistic", "hinge"] | None = None
    """Adversarial term, of a discriminator of patches that is trained beside the codec: relativistic (R3GAN) or hinge,
    both with the penalties R1 and R2. Held-out reconstructions are judged while it trains, what did best is kept."""
    adversarial_weight: Annotated[float, Within(0, 100)] = 0.2
    """Length of its gradient at the reconstructions, as a share of that of all other terms there."""
    adversarial_start: Annotated[float, Within(0, 1)] = 0.5
    """Share of the steps after which the codec learns from the discriminator, which learns from half of it on."""


@dataclass
class TrainVQVAE(PictureSize, KindSettings, Settings):
    """Train a codec on images: RUN/vqvae turns an image into a grid of codes and back."""

    data: Annotated[str, Place(), DATA_HELP]
    out: Annotated[Path, Place("RUN")]
    """RUN folder; the codec is written to RUN/vqvae. Rerunning the command continues the run."""
    from_codec: Annotated[str | None, Place("MODEL"), Unsaid(), tyro.conf.arg(name="from")] = None
    """RUN, MODEL or codec folder whose codec the training starts from: its network, codes and form of images stay, its
    weights go on learning. The result is another codec: extract codes anew."""
    freeze: tuple[Literal["encoder", "quantizer", "decoder"], ...] = ()
    """With --from: parts of the codec that stay as they are. With encoder and quantizer it keeps its codes and its id:
    codes that were extracted, and priors, go on with the new decoder."""
    levels: Annotated[int, Within(1, 8)] = 1
    """Code grids, coarse to fine, the coarse ones condition the finer ones (VQ-VAE-2); --model.downsampling is that of
    the coarsest. With --quantizer.depth each grid has as many levels."""
    steps: Annotated[int | None, Within(1)] = None
    """Optimiser steps."""
    batch_size: Annotated[int | None, Within(1, 10**6)] = None
    """Images of one optimiser step, over all processes."""
    gradient_accumulation_steps: Annotated[int, Within(1, 10**6), Free(told=True)] = 1
    """Pieces in which a process works through its images of a step, to save memory; the codebook moves once a step."""
    learning_rate: Annotated[float | None, Within(0, 10, above=True)] = None
    """Peak learning rate."""
    seed: Seed = 0
    """Seed of the initial weights and of the order of the images."""
    num_workers: NumWorkers = None
    threads: Threads = None
    precision: Literal["fp32", "bf16"] | None = None
    """Precision of the forward passes of training; left out: bf16 on a GPU that computes in it and, above 16 px, on a
    CPU that does (AVX512-BF16 or AMX), else fp32. Weights, codes, images and measurements are float32 always."""
    reproducible: bool = False
    """Train the same bits on 1, 2, 4 or 8 processes: the batch is cut into eight shards, summed in a fixed order, and
    a process computes with one thread. Slower; without it, processes agree up to rounding, but to the bit in bf16 on a
    CPU with 16 images a process times a power of two (ema, fsq)."""
    checkpoint_every: Annotated[int, Within(1, 10**9), Free()] = 500
    """Optimiser steps between checkpoints."""
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    balance: Annotated[bool, Unsaid()] = False
    """See every class equally often: the images of small classes come up again sooner."""
    warmup_steps: Annotated[int, Within(0, 10**9)] = 100
    """Optimiser steps over which the learning rate rises."""
    schedule: Literal["trapezoid", "cosine"] = "trapezoid"
    """How the learning rate falls to 0 after the rise: over the last part of the run, or along half a cosine from the
    peak on."""
    decay_fraction: Annotated[float, Within(0, 1)] = 0.5
    """Share of the run, at its end, over which the learning rate of a trapezoid falls."""
    optimizer: Literal["adamw", "muon"] | None = field(default=None, metadata={"before": "adamw"})
    """Optimiser of the convolutions between hidden layers; all else has AdamW. muon, at half of the learning rate,
    takes longer for a step and comes nearer to the pictures. Left out: muon in bf16 on a CPU that computes in it and
    above 16 px, else adamw."""
    weight_decay: Annotated[float, Within(0, 10)] = 0.0
    """Weight decay of the optimiser."""
    adam_betas: Annotated[tuple[float, float], Within(0, 1, below=True)] = (0.9, 0.99)
    """Decay rates of AdamW's averages."""
    max_gradient_norm: Annotated[float, Within(0, 1e12, above=True)] = 1.0
    """Gradients are scaled down to this norm."""
    augment: bool | None = None
    """Shift the training images by up to half a code and mirror every other one; left out: with fewer than 5,000 of
    more than 16 px, which a codec would learn by heart. Codes are always those of the images as they are."""
    judge_every: Annotated[int | None, Within(1)] = None
    """Steps between two measurements of held-out reconstructions in the features of a small network that is fitted to
    the data first (rFID); the weights that did best are written. Left out: 20 times in all where there is an
    adversarial term, else never."""
    average_decay: Annotated[float, Within(0, 1, below=True)] = 0.99
    """Share of the averaged weights (those that are saved) that one step keeps."""
    log_every: Annotated[int, Within(1, 10**9), Free(told=True)] = 50
    """Optimiser steps between log lines."""
    model: ModelSettings = field(default_factory=ModelSettings)
    quantizer: QuantizerSettings = field(default_factory=QuantizerSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    fail_on_collapse: Annotated[bool, Free(told=True)] = False
    """Stop with exit code 4 when, after the warm-up, fewer than 10% of the codes are used over a log interval."""
    report_to: ReportTo = "none"
    overwrite: Overwrite = False
    """Start anew instead of continuing what is in RUN."""
    accept_changes: AcceptChanges = False
    dry_run: DryRun = False
    """Print what would be done and how long it would take; write nothing."""


@dataclass
class ExtractCodes(CodecSize, KindSettings):
    """Write the codes of images to disk, once, for training a prior. The bytes depend on codec and data alone."""

    codec: str
    """Codec folder, RUN or MODEL; or a folder of transformers (Chameleon, Janus, Emu3) or diffusers (VQModel)."""
    data: Annotated[str, DATA_HELP]
    out: Path
    """Code store to write. Rerunning the command continues where it stopped."""
    views: str = "none"
    """Further code rows of each training image: its mirror image (flip), or beside that four overlapping crops of 10/11
    of each side and their mirror images (ten-crop)."""
    condition: tuple[str, ...] = ()
    """Columns of numbers, or lists of numbers, in the tables or metadata files of --data, all after one flag: they are
    copied beside the codes, and a prior trained on these is conditioned on them."""
    batch_size: Annotated[int | None, Within(1, 10**6)] = None
    """Images handed to the encoder at once by each process."""
    num_workers: NumWorkers = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    overwrite: Overwrite = False
    """Replace the code store that is at OUT."""
    dry_run: DryRun = False
    """Print what would be done; write nothing."""


@dataclass
class CheckData(PictureSize, KindSettings):
    """Read and decode every image, say which are bad, and write a list that any command takes as DATA."""

    data: Annotated[str, tyro.conf.Positional, DATA_HELP]
    out: Path = Path("checked.json")
    """The list: a hash of each image; what differs when it is used is refused."""
    policy: Literal["error", "skip"] = "error"
    """What bad images do: end the command without a list, or be left out of what uses the list."""
    sheet: Path | None = None
    """PNG file for a sheet of up to 64 of the images as a network will see them: cut, scaled, grey or in colour."""
    num_workers: NumWorkers = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None


@dataclass
class Reconstruct(KindSettings):
    """Encode and decode held-out images, and write originals and reconstructions side by side."""

    codec: str
    """Codec folder, RUN or MODEL."""
    data: Annotated[str, DATA_HELP]
    out: Path
    """Folder for 000000.png (original left, reconstruction right) ...; a sheet of them all is written beside it,
    OUT.png."""
    num_images: Annotated[int, Within(1, 100_000), tyro.conf.arg(aliases=["--num-samples"])] = 16
    """How many images, from the first of the held-out rows on."""
    first_levels: Annotated[int | None, Within(1, 64)] = None
    """Decode the first of the codec's levels alone; left out: all."""
    num_workers: NumWorkers = None
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    overwrite: Overwrite = False
    """Replace the pictures that are at OUT."""
    sheet: Sheet = None


def _require(flag: str, holds: bool, allowed: str, value: object) -> None:
    if not holds:
        raise UsageError(f"{flag} must be {allowed}, got {value}")


def check(settings: TrainVQVAE | ExtractCodes | Reconstruct) -> None:
    """Check every value that can be checked without data.

    Raises:
        UsageError: Naming the first flag that is out of range, what is allowed and what was given.
    """
    require_data(settings.data)
    require_folder_to_write(settings.out)
    check_ranges(settings)
    if isinstance(settings, Reconstruct):
        return
    chosen_size(settings)
    if isinstance(settings, ExtractCodes):
        return
    require_tracker(settings.report_to)
    _check_model(settings.model)
    if (count := settings.levels * settings.quantizer.depth) > MAX_LEVELS:
        raise UsageError(f"--levels times --quantizer.depth must be at most {MAX_LEVELS}, got {count}; lower one")
    sizes = settings.quantizer.level_codes
    if sizes is not None and settings.from_codec is None and len(sizes) != count:
        raise UsageError(f"--quantizer.level-codes must be {count} number(s), one a level, got {len(sizes)}")
    if settings.levels > 1 and settings.model.network == "sonnet":
        raise UsageError(f"--model.network sonnet has one code grid, got --levels {settings.levels}; leave out one")
    check_quantizer_settings(settings.quantizer)
    if settings.freeze and settings.from_codec is None:
        raise UsageError(
            f"--freeze {' '.join(settings.freeze)} needs a codec to start from; give --from, or leave it out"
        )
    if {"encoder", "decoder"} <= set(settings.freeze):
        raise UsageError("--freeze encoder decoder leaves no network to train; leave out one")
    for term in ("perceptual", "adversarial"):
        for name in (f"{term}_weight", f"{term}_start"):
            changed = getattr(settings.loss, name) != getattr(LossSettings(), name)
            if getattr(settings.loss, term) is None and changed:
                raise UsageError(f"--loss.{name.replace('_', '-')} goes with --loss.{term}; give one or leave it out")


def _check_model(model: ModelSettings) -> None:
    fits = model.downsampling is None or can_be_taken(model.downsampling)
    _require("--model.downsampling", fits, ALLOWED, model.downsampling)
    whole_heads = model.width is None or not model.attention or model.width % 32 == 0
    _require("--model.width", whole_heads, "a multiple of 32 with --model.attention", model.width)
    if model.network == "sonnet" and (model.attention or model.blocks_per_resolution):
        raise UsageError(
            "--model.network sonnet has neither --model.attention nor --model.blocks-per-resolution; leave these out "
            "or take another network"
        )


def resolve(settings: TrainVQVAE, facts: Facts, device_type: str, *, modality: Modality | None = None) -> TrainVQVAE:
    """Return the settings with every choice made for this data and kind of device ("cpu", "cuda", "mps").

    `num_workers` and `precision` are left to the machine that runs.

    Args:
        settings: As typed.
        facts: Of the data.
        device_type: Where it will run.
        modality: What the data is; None is pictures.

    Raises:
        UsageError: If a setting is not one of this kind of data, or out of its range.
    """
    small_machine = device_type == "cpu"
    modality = modality or MODALITIES["pictures"]
    transform = modality.values.transform(
        own_settings(modality, settings), facts, channels=settings.model.channels, device_type=device_type
    )
    size = transform.shape
    settings = with_own_settings(settings, modality, modality.values.settings_of(transform))
    downsampling = as_one(settings.model.downsampling or default_downsampling(size), len(size))
    if not isinstance(downsampling, int):
        _require("--model.downsampling", len(downsampling) == len(size), f"{len(size)} numbers", downsampling)
    downsampling = _of_coarsest(settings, downsampling, size)
    grid = grid_of(size, downsampling)
    tiny = max(size) <= TINY
    width = settings.model.width or (64 if tiny else 128 if small_machine else 256)
    bottleneck, blocks = settings.model.network == "bottleneck", settings.model.num_residual_blocks
    model = replace(
        settings.model,
        channels=transform.channels,
        downsampling=downsampling,
        width=width,
        residual_width=settings.model.residual_width or max(8, width // (2 if bottleneck else 4) // 8 * 8),
        num_residual_blocks=(3 if bottleneck else 2) if blocks is None else blocks,
    )
    between = factors_of(settings.model.grid_factor, len(size))
    cells = math.prod(grid) * math.prod(between) ** (settings.levels - 1)  # of the finest
    steps = settings.steps or ((2000 if tiny else 3000) if small_machine else 10_000)
    several = settings.levels > 1 or settings.quantizer.depth > 1
    return replace(
        settings,
        steps=steps,
        batch_size=settings.batch_size or (64 if small_machine else 256),
        judge_every=settings.judge_every or (max(1, steps // 20) if settings.loss.adversarial else None),
        augment=settings.augment if settings.augment is not None else facts.num_train < FEW_IMAGES and not tiny,
        learning_rate=settings.learning_rate or (3e-3 if tiny else 2e-3 if several and small_machine else 1e-3),
        model=model,
        quantizer=_resolved_quantizer(settings, size, facts.num_train * cells),
    )


def _resolved_quantizer(settings: TrainVQVAE, size: tuple[int, ...], num_vectors: int) -> QuantizerSettings:
    """Return the quantiser's settings with every choice made, for so many training vectors of the finest grid.

    Raises:
        UsageError: If levels are to be left out in training, and there is one.
    """
    quantizer = settings.quantizer
    sizes = quantizer.level_codes
    num_codes = sizes[0] if sizes else quantizer.num_codes or default_num_codes(size, num_vectors)
    deep, dropout = quantizer.depth > 1, LEVEL_DROPOUT[quantizer.depth > 2]
    if quantizer.level_dropout is not None and not (deep or settings.levels > 1):
        raise UsageError("--quantizer.level-dropout needs several levels: --levels or --quantizer.depth above 1")
    return replace(
        quantizer,
        num_codes=num_codes,
        code_dim=fixed_code_dim(quantizer.name, num_codes) or quantizer.code_dim or 16,
        entropy_temperature=quantizer.entropy_temperature or (1.0 if quantizer.name == "lfq" else None),
        level_dropout=quantizer.level_dropout if quantizer.level_dropout is not None or not deep else dropout,
    )


def _of_coarsest(settings: TrainVQVAE, downsampling: Downsampling, size: tuple[int, ...]) -> Downsampling:
    """Return the downsampling of the coarsest of several grids: what is given, or enlarged to what they need.

    Raises:
        UsageError: If what is given leaves the finest grid as many cells as the data have values along an axis, or
            the data are too small for so many grids.
    """
    if settings.levels == 1:
        if settings.model.grid_factor != 2:
            number = settings.model.grid_factor
            raise UsageError(f"--model.grid-factor needs --levels above 1, got {number}; leave it out")
        return downsampling
    between, rank = settings.model.grid_factor, len(size)
    fits = can_be_taken(between) and len(factors_of(between, rank)) == rank
    _require("--model.grid-factor", fits, ALLOWED, between)
    parts = [factor ** (settings.levels - 1) for factor in factors_of(between, rank)]
    factors = factors_of(downsampling, rank)
    if settings.model.downsampling is None:
        coarsest = [part * max(2, -(-factor // part)) for factor, part in zip(factors, parts, strict=True)]
        if any(factor > max(side, 2) for factor, side in zip(coarsest, size, strict=True)):
            raise UsageError(
                f"--levels {settings.levels} are too many for {by(size, 'x')}: one code of the coarsest grid would be "
                f"{by(tuple(coarsest), 'x')} of them; take fewer, or give --model.downsampling"
            )
        return as_one(tuple(coarsest), rank)
    whole = all(factor % part == 0 for factor, part in zip(factors, parts, strict=True))
    finest = max(factor // part for factor, part in zip(factors, parts, strict=True))
    allowed = f"{between} to the power {settings.levels - 1}, times 2 or more, for {settings.levels} grids"
    _require("--model.downsampling", whole and finest >= 2, allowed, downsampling)
    return downsampling


def trained_form(settings: TrainVQVAE) -> tuple[Modality, Form]:
    """Return what a codec of resolved settings is trained on: the kind of data, and their form."""
    modality = MODALITIES[settings.modality or "pictures"]
    own, channels = own_settings(modality, settings), settings.model.channels
    form = modality.values.transform(own, None, channels=channels, device_type="cpu")
    return in_form(modality, form), form
