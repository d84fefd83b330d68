"""What a training of a prior begins with: its codes, opened and checked, its settings, resolved, its run at step 0."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stage2_prior.conditions import condition_columns, conditions_of
from stage2_prior.fine_tuning import architecture_of, open_base
from stage2_prior.orders import layout_of, orders_of
from stage2_prior.prior import CausalPrior
from stage2_prior.run import Training, prepare
from stage2_prior.sequences import Sequences
from stage2_prior.settings import TINY_ROWS, CodeFacts, TrainPrior, check, filled, resolve
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.identity import require_same_codec
from vq_prior.core.processes.runtime import Runtime, has_native_bf16, sharding_asked, start_runtime
from vq_prior.core.settings import changed
from vq_prior.core.spec import Codec
from vq_prior.core.training.runs import continued


@dataclass(frozen=True)
class Begun:
    """A training before its first step.

    Attributes:
        training: The run, at step 0; its settings are resolved.
        store: Its training rows.
        base: The prior that it starts from; None from scratch.
        chosen: Resolves settings for these codes on this machine.
    """

    training: Training
    store: CodeStore
    base: CausalPrior | None
    chosen: Callable[[TrainPrior], TrainPrior]


def begin(
    settings: TrainPrior, codec: Codec | None = None, base: CausalPrior | None = None, *, aloud: bool = True
) -> Begun:
    """Return the training that settings ask for, every input opened and checked; nothing is written.

    Args:
        settings: As typed; of a run that is there, what was not typed is taken.
        codec: Decodes the sample grids; must be the codec of the codes.
        base: The prior that `settings.from_model` names, already loaded; None loads it from there.
        aloud: Whether to name the device.

    Raises:
        UsageError: On a setting out of range.
        ArtifactError: If the code store or the base is missing, damaged, or of another codec.
    """
    check(settings)
    settings = rerun_of(settings)
    if settings.codes is None:
        raise UsageError("train_prior reads codes; extract those of the images first and give codes instead of data")
    if base is None and settings.from_model is not None:
        base = open_base(settings)
    runtime = start_runtime(settings.precision, reproducible=settings.reproducible, threads=settings.threads)
    store, validation = _opened_stores(settings, codec, base)
    num_classes = len(store.index.label_names) if store.labelled else 0
    settings = changed(settings, **orders_of(settings, store.spec))
    layout = layout_of(settings, store.spec, num_classes)
    facts = CodeFacts(layout.num_tokens, layout.num_codes, len(store), None if base is None else architecture_of(base))
    if sharding_asked() and not settings.fsdp:
        settings = dataclasses.replace(settings, fsdp=True)
        check(settings)
    here = runtime

    def chosen(some: TrainPrior) -> TrainPrior:
        precision = at_default_precision(here, some, len(store)).precision
        some = dataclasses.replace(some, **orders_of(some, store.spec))
        return dataclasses.replace(resolve(some, facts, here.device.type), precision=precision)

    runtime = at_default_precision(runtime, settings, len(store))
    if aloud:
        runtime.say(runtime.describe())
    settings = chosen(settings)
    runtime.require_rows(filled(settings.batch_size), settings.gradient_accumulation_steps)
    return Begun(prepare(settings, runtime, store, validation, codec, base), store, base, chosen)


def rerun_of(settings: TrainPrior) -> TrainPrior:
    """Return the settings as `continued` gives them where RUN holds a training and is not to be overwritten."""
    return settings if settings.overwrite else continued(settings, settings.out / "prior-training")


def at_default_precision(runtime: Runtime, settings: TrainPrior, num_rows: int) -> Runtime:
    """Return the runtime, at bf16 where nothing was asked for and it is faster: on a CPU that has it.

    The few rows of a tiny set train in moments, and in float32 the same to the last bits but few on any machine.
    """
    faster = runtime.device.type == "cpu" and has_native_bf16("cpu") and num_rows >= TINY_ROWS
    return dataclasses.replace(runtime, precision="bf16") if settings.precision is None and faster else runtime


def _opened_stores(settings: TrainPrior, codec: Codec | None, base: CausalPrior | None) -> tuple[CodeStore, CodeStore]:
    """Return training and held-out rows of the codes, checked against what else was given."""
    assert settings.codes is not None
    store, validation = CodeStore.open(settings.codes, "train"), CodeStore.open(settings.codes, "validation")
    store.verify()
    if not len(validation):
        raise ArtifactError(f"{settings.codes} has no validation rows; extract the codes anew with a held-out split")
    if codec is not None:
        require_same_codec(str(settings.codes), store.index.codec.id, "--codec", codec.codec_id)
    if base is not None:
        _require_same_codes(base, (store, validation), settings.codes)
    if settings.balance and not (store.labelled and store.index.label_names):
        raise UsageError(f"--balance needs classes, and {settings.codes} has none; leave it out")
    return store, validation


def _require_same_codes(base: CausalPrior, stores: Sequence[CodeStore], codes: Path) -> None:
    """Raise `ArtifactError` unless the codes are those that the base is a distribution of, each with a token."""
    store = stores[0]
    require_same_codec(str(codes), store.index.codec.id, "the prior of --from", base.codec_id)
    if base.spec != store.spec:
        raise ArtifactError(f"{codes} holds codes of {store.spec}, the prior of --from is for {base.spec}")
    known, there = [each.column for each in conditions_of(base.model)], list(condition_columns(store.index))
    if known != there:
        names = [", ".join(each.name for each in columns) or "none" for columns in (there, known)]
        raise ArtifactError(f"{codes} holds the conditions {names[0]}, the prior of --from has {names[1]}")
    if base.layout.kept is not None:
        for store in stores:
            try:
                Sequences.read(store, base.layout).batch(slice(None))
            except ArtifactError as error:
                hint = "the prior of --from never saw it; without --from every code that occurs is learned"
                raise ArtifactError(f"{codes}: {error}; {hint}") from None
