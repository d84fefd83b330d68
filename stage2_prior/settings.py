"""Settings of stage two: what a user types. Imports neither torch nor transformers."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import tyro

from vq_prior.core.errors import UsageError
from vq_prior.core.modality import KindSettings
from vq_prior.core.settings import (
    AcceptChanges,
    DryRun,
    Formerly,
    Free,
    ImageColumn,
    LabelColumn,
    Overwrite,
    Place,
    Seed,
    Settings,
    Threads,
    Unsaid,
    Within,
    check_ranges,
    require_data,
)
from vq_prior.core.training.tracking import ReportTo, require_tracker

T = TypeVar("T")

TINY_ROWS = 5000
MANY_ROWS = 20_000
SIZES = {  # layers, width, heads, key-value heads
    "tiny": (4, 96, 3, 3),
    "small": (5, 128, 4, 4),
    "base": (8, 320, 5, 5),
    "large": (12, 768, 12, 4),
}
ON_GPU = (12, 512, 8, 8)


def filled(value: T | None) -> T:
    """Return a setting that `resolve` has filled in."""
    assert value is not None
    return value


@dataclass
class PriorModel(Settings):
    """Architecture of the prior, a stock transformers causal language model."""

    kind: Literal["qwen3", "llama"] = "qwen3"
    """Architecture: qwen3 normalises queries and keys (QK-norm), llama does not."""
    num_layers: Annotated[int | None, Within(1)] = None
    """Transformer blocks; left out: chosen for the data and the machine."""
    hidden_size: Annotated[int | None, Within(1)] = None
    """Width of the residual stream; left out: chosen for the data and the machine."""
    num_heads: Annotated[int | None, Within(1)] = None
    """Query heads; left out: one for every 32 or 64 channels."""
    num_key_value_heads: Annotated[int | None, Within(1)] = None
    """Key and value heads (a divisor of the query heads); left out: as many as query heads."""
    intermediate_size: Annotated[int | None, Within(1)] = None
    """Width of the gated feed-forward layer; left out: 8/3 of hidden-size, a multiple of 32."""
    rope_theta: Annotated[float | None, Within(1, 1e9, above=True)] = None
    """Base of the rotary position frequencies; left out: chosen for the sequence length."""
    depth_blocks: Annotated[int, Within(0)] = 0
    """With levels that are interleaved: so many of the blocks, the last ones, go through the codes of a cell one after
    another, and the others see a cell as one vector (RQ-Transformer); 0: every code is seen by all blocks."""


@dataclass
class TrainPrior(KindSettings, Settings):
    """Train the prior on a code store, or on images turned into one (RUN/prior)."""

    codes: Annotated[Path | None, Place("CODES")] = None
    """Code store, as extract-codes wrote it; or give --data."""
    out: Annotated[Path, Place("RUN")] = tyro.MISSING
    """RUN folder; the prior is written to RUN/prior."""
    codec: Annotated[str | None, Place("CODEC")] = None
    """Codec of the codes (folder, RUN or MODEL): sample grids while training, and RUN/model at the end. Left out: the
    one beside the prior of --from, if there is one."""
    data: Annotated[str | None, Place()] = None
    """Images instead of --codes (folder, parquet or arrow files, Hub id owner/name, or the word digits): their codes
    are written to RUN/codes first."""
    image_column: ImageColumn = None
    label_column: LabelColumn = None
    balance: Annotated[bool, Unsaid()] = False
    """See every class equally often: the codes of small classes come up again sooner."""
    from_model: Annotated[str | None, Place("MODEL"), tyro.conf.arg(name="from")] = None
    """MODEL, RUN or prior folder whose prior the training starts from: fine-tuning. Its codec stays as it is."""
    lora: bool = False
    """With --from: train low-rank adapters (LoRA) and the rows of the prompts alone; RUN/prior has them merged."""
    lora_rank: Annotated[int | None, Within(1, 1024)] = None
    """With --lora: rank of the adapters; left out: 8."""
    steps: Annotated[int | None, Within(1)] = None
    """Optimiser steps; left out: chosen for the data and the machine."""
    batch_size: Annotated[int | None, Within(1)] = None
    """Sequences of one optimiser step, all processes together; left out: chosen for the data and the machine."""
    gradient_accumulation_steps: Annotated[int, Within(1), Free(told=True)] = 1
    """Pieces in which a process works through its sequences of a step, to save memory."""
    learning_rate: Annotated[float | None, Within(0, 1, above=True)] = None
    """Peak learning rate; left out: chosen for the width of the model and the optimiser."""
    seed: Seed = 0
    """Seed of the initial weights, the order of the data and every dropout."""
    threads: Threads = None
    precision: Literal["fp32", "bf16"] | None = None
    """Precision of the matrix products; left out: bf16 on a GPU that has it, and on a CPU that has it from 5,000 rows
    on; fp32 elsewhere."""
    reproducible: bool = False
    """Train the same bits on 1, 2, 4 or 8 processes: the batch is cut into eight shards, summed in a fixed order, and
    a process computes with one thread. Slower; without it, processes agree up to rounding."""
    checkpoint_every: Annotated[int, Within(1), Free()] = 500
    """Steps between two checkpoints."""
    size: Literal["tiny", "small", "base", "large"] | None = None
    """Size of the model, for what --model leaves open: 4 blocks of width 96, 5 of 128, 8 of 320, or 12 of 768 with
    grouped-query attention. Left out: tiny for few rows, small without a GPU, else 12 of 512."""
    model: PriorModel = field(default_factory=PriorModel)
    """Architecture."""
    label_dropout: Annotated[float | None, Within(0, 1)] = None
    """Share of the rows trained without their class, which makes guidance possible; left out: 0.1, and 0.7 when
    fine-tuning."""
    token_dropout: Annotated[float | None, Within(0, 1)] = None
    """Share of the input tokens replaced by the null token while training; left out: chosen for the data."""
    order: str = "raster"
    """Order of the cells: raster (row by row, level after level), or the raster places in the order they are drawn, as
    a JSON list or a file that holds one."""
    level_order: Literal["flat", "interleaved"] | None = field(default=None, metadata={"before": "flat"})
    """Order of the levels of a codec that has several: flat (one after the other), or interleaved (cell by cell, each
    with all its levels; of a finer grid, the cells that lie in it). Left out: interleaved where the grids nest, flat
    elsewhere and with --order or --given-levels."""
    given_levels: tuple[int, ...] = ()
    """Levels that are not drawn but given (generate --given): the prior learns the others in their light."""
    optimizer: Literal["adamw", "muon"] | None = field(default=None, metadata={"before": "adamw"})
    """Optimiser of the matrices in the blocks; embeddings, output layer and norms have AdamW. Left out: muon on a CPU
    from 20,000 rows on; else, when fine-tuning and with --fsdp, adamw."""
    weight_decay: Annotated[float, Within(0)] = 0.1
    """Decoupled weight decay of the matrices."""
    average_decay: Annotated[float | None, Within(0, 1)] = None
    """Decay of the weight average that is evaluated and saved; left out: chosen for the data."""
    warmup_steps: Annotated[int | None, Within(0)] = None
    """Steps over which the learning rate rises; left out: 100, and fewer when fine-tuning."""
    decay_fraction: Annotated[float, Within(0, 1)] = 0.5
    """Share of all steps, at the end, over which the learning rate falls to 0."""
    gradient_checkpointing: Annotated[bool, Free(told=True)] = False
    """Compute each block again for its backward pass instead of keeping what it computed: less memory, a third more
    time."""
    fsdp: Annotated[bool, Free(told=True)] = False
    """Cut weights, gradients and optimiser state over the processes (FSDP2), for a prior whose training does not fit
    into one; what is saved is the same. A launcher whose file says FSDP asks for it, too."""
    max_grad_norm: Annotated[
        float, Within(0, above=True), tyro.conf.arg(name="max-gradient-norm"), Formerly("max-grad-norm")
    ] = 1.0
    """Gradients with a larger norm are scaled down to it."""
    log_every: Annotated[int | None, Within(1), Free(told=True)] = None
    """Steps between two lines of progress; left out: eval-every."""
    eval_every: Annotated[int | None, Within(1)] = None
    """Steps between two measurements on the held-out rows; left out: chosen for the data."""
    eval_rows: Annotated[int | None, Within(1)] = None
    """Held-out rows measured while training; left out: chosen for the machine."""
    patience: Annotated[int | None, Within(1)] = 10
    """Stop after this many measurements without improvement; None trains to the end."""
    sample_every: Annotated[int | None, Within(1), Free(told=True)] = None
    """Steps between two sample grids (with --codec); left out: at every fifth measurement."""
    report_to: ReportTo = "none"
    overwrite: Overwrite = False
    """Start anew instead of continuing what is in RUN."""
    accept_changes: AcceptChanges = False
    dry_run: DryRun = False
    """Print the resolved settings, the size of the model and the estimated time, and write nothing."""


@dataclass(frozen=True)
class CodeFacts:
    """What the defaults depend on.

    Attributes:
        num_tokens: T, codes of one sequence.
        num_codes: K, codes of all levels together.
        num_rows: Training rows.
        base: Architecture of the prior that the training starts from; None from scratch.
    """

    num_tokens: int
    num_codes: int
    num_rows: int
    base: PriorModel | None = None


def _check_sources(settings: TrainPrior) -> None:
    """Check what the training reads and starts from; raises `UsageError`."""
    s = settings
    if s.out is tyro.MISSING:
        raise UsageError("--out must name the RUN folder to write, got nothing")
    if (s.codes is None) == (s.data is None):
        both = "both" if s.codes is not None else "neither"
        raise UsageError(f"give either --codes (a code store) or --data (images whose codes are extracted), got {both}")
    where = ("image_column", "label_column", "split", "labels_file", "file_column")
    for name in (*where, "classes", "max_images", "shard_cache_mib"):
        if (value := getattr(s, name)) is not None and s.data is None:
            raise UsageError(f"--{name.replace('_', '-')} goes with --data, got {value} with --codes; leave it out")
    if s.data is not None:
        require_data(s.data)
    if s.from_model is None:
        if s.lora:
            raise UsageError("--lora needs a prior to start from; give --from MODEL, or leave out --lora")
        if s.data is not None and s.codec is None:
            raise UsageError("--data needs the codec that turns images into codes; give --codec, or --from MODEL")
    if s.lora_rank is not None and not s.lora:
        raise UsageError(f"--lora-rank goes with --lora, got {s.lora_rank} without it; add --lora or leave it out")
    if s.level_order == "interleaved" and s.order != "raster":
        raise UsageError("--level-order interleaved cannot go with --order, which names all places; leave out one")
    if s.from_model is not None:
        given_sizes: dict[str, object] = {"size": s.size} if s.size is not None else {}
        if s.order != "raster":
            given_sizes["order"] = s.order
        if s.level_order == "interleaved":
            given_sizes["level-order"] = s.level_order
        if s.given_levels:
            given_sizes["given-levels"] = " ".join(map(str, s.given_levels))
        for setting in dataclasses.fields(PriorModel):
            if getattr(s.model, setting.name) != setting.default:
                given_sizes[f"model.{setting.name.replace('_', '-')}"] = getattr(s.model, setting.name)
        for flag, value in given_sizes.items():
            raise UsageError(f"--{flag} {value} cannot go with --from, whose architecture is kept; leave it out")


def check(settings: TrainPrior) -> None:
    """Check every value that can be checked without the data.

    Raises:
        UsageError: Naming the flag, what was given and what is allowed.
    """
    _check_sources(settings)
    require_tracker(settings.report_to)
    s = settings
    if s.fsdp:
        together = {"lora": s.lora, "optimizer muon": s.optimizer == "muon", "reproducible": s.reproducible}
        for other in [flag for flag, is_set in together.items() if is_set]:
            raise UsageError(f"--fsdp does not go with --{other}; leave out one of them")
    check_ranges(settings)


def _check_heads(model: PriorModel) -> None:
    """Check what the sizes of a resolved architecture demand of each other; raises `UsageError`."""
    hidden, heads = filled(model.hidden_size), filled(model.num_heads)
    key_value_heads = filled(model.num_key_value_heads)
    if hidden % heads or (hidden // heads) % 2:
        raise UsageError(
            f"--model.num-heads must divide --model.hidden-size {hidden} into an even number of channels, "
            f"got {heads}; change it or leave it out"
        )
    if model.depth_blocks >= filled(model.num_layers):
        raise UsageError(
            f"--model.depth-blocks must be below the number of blocks, {model.num_layers}, got {model.depth_blocks}"
        )
    if heads % key_value_heads:
        raise UsageError(
            f"--model.num-key-value-heads must divide --model.num-heads {heads}, "
            f"got {key_value_heads}; change it or leave it out"
        )


def resolve_model(model: PriorModel, facts: CodeFacts, device_type: str, size: str | None = None) -> PriorModel:
    """Return the architecture with every size filled in: about one million parameters without a GPU.

    Of few rows a larger model only learns the rows, so they get half a million on any machine. Where the width or the
    heads are given, heads are as wide as in the size they replace.

    Raises:
        UsageError: If the sizes do not fit each other.
    """
    chosen = "tiny" if facts.num_rows < TINY_ROWS else "small"
    layers, width, heads, groups = SIZES[size or chosen]
    if size is None and chosen == "small" and device_type != "cpu":
        layers, width, heads, groups = ON_GPU
    hidden = model.hidden_size or width
    num_heads = model.num_heads or max(1, hidden // (width // heads))
    repeats = heads // groups if num_heads % (heads // groups) == 0 else 1
    resolved = PriorModel(
        kind=model.kind,
        depth_blocks=model.depth_blocks,
        num_layers=model.num_layers or layers,
        hidden_size=hidden,
        num_heads=num_heads,
        num_key_value_heads=model.num_key_value_heads or num_heads // repeats,
        intermediate_size=model.intermediate_size or -(-hidden * 8 // 3 // 32) * 32,
        rope_theta=model.rope_theta or (1000.0 if facts.num_tokens <= 512 else 10000.0),
    )
    _check_heads(resolved)
    return resolved


def _resolve_fine_tuning(settings: TrainPrior, facts: CodeFacts, device_type: str) -> TrainPrior:
    """Return the settings of a training that starts from another prior; `settings.model` stays empty.

    The figures are those that did best on 200 pictures of one class (docs/log.md). Most rows go without their class:
    the base often knows the class, while its null prompt has all of the way to the new data to go.
    """
    assert facts.base is not None
    small, tiny = device_type == "cpu", facts.num_rows < TINY_ROWS
    batch_size = settings.batch_size or (32 if small or tiny else 256)
    eval_every = settings.eval_every or (20 if tiny else 100)
    width = filled(facts.base.hidden_size)
    peak = 1.75e-3 if settings.lora else 3.5e-4
    return dataclasses.replace(
        settings,
        steps=settings.steps or max(200, min(5 * facts.num_rows // batch_size, 2000 if small else 20_000)),
        batch_size=batch_size,
        optimizer=settings.optimizer or "adamw",
        learning_rate=settings.learning_rate or peak * math.sqrt(128 / width),
        lora_rank=settings.lora_rank or (8 if settings.lora else None),
        label_dropout=0.7 if settings.label_dropout is None else settings.label_dropout,
        token_dropout=0.05 if settings.token_dropout is None else settings.token_dropout,
        average_decay=(0.98 if tiny else 0.995) if settings.average_decay is None else settings.average_decay,
        warmup_steps=20 if settings.warmup_steps is None else settings.warmup_steps,
        log_every=settings.log_every or eval_every,
        eval_every=eval_every,
        eval_rows=settings.eval_rows or (1000 if small else 5000),
        sample_every=settings.sample_every or 5 * eval_every,
    )


def resolve(settings: TrainPrior, facts: CodeFacts, device_type: str) -> TrainPrior:
    """Return the settings with everything that was left out chosen for the data and the machine.

    A pure function. Nothing but `steps` may depend on `steps`, because a run may be continued to more of them.

    Args:
        settings: Settings that passed `check`.
        facts: Sizes of the code store.
        device_type: "cpu", "cuda" or "mps".

    Raises:
        UsageError: If the sizes of the model do not fit each other.
    """
    if facts.base is not None:
        return _resolve_fine_tuning(settings, facts, device_type)
    small, tiny = device_type == "cpu", facts.num_rows < TINY_ROWS
    model = resolve_model(settings.model, facts, device_type, settings.size)
    batch_size = settings.batch_size or (32 if small or tiny else 256)
    eval_every = settings.eval_every or (100 if small or tiny else 1000)
    many = facts.num_rows >= MANY_ROWS
    optimizer = settings.optimizer or ("muon" if small and many and not settings.fsdp else "adamw")
    peak = 1.2e-2 if optimizer == "muon" else 3e-3
    default_steps = max(700, min(13 * facts.num_rows // batch_size, 3000 if small else 100_000))
    return dataclasses.replace(
        settings,
        steps=settings.steps or default_steps,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=settings.learning_rate or peak * math.sqrt(128 / filled(model.hidden_size)),
        model=model,
        label_dropout=0.1 if settings.label_dropout is None else settings.label_dropout,
        warmup_steps=100 if settings.warmup_steps is None else settings.warmup_steps,
        token_dropout=settings.token_dropout
        if settings.token_dropout is not None
        else (0.2 if tiny else 0.1 if not many else 0.0 if small else 0.05),
        average_decay=settings.average_decay
        if settings.average_decay is not None
        else (0.995 if small or tiny else 0.999),
        log_every=settings.log_every or eval_every,
        eval_every=eval_every,
        eval_rows=settings.eval_rows or (1000 if small else 5000),
        sample_every=settings.sample_every or 5 * eval_every,
    )
