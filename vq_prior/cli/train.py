"""`vq-prior train`: the whole road from images to a MODEL, its samples, its measures and a page, resumable anywhere.

The work is that of the commands train-vqvae, extract-codes, train-prior, evaluate and report; here it is decided what
they are asked for, and what is done already.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from stage1_vqvae.data.sources import open_data_of
from stage1_vqvae.extract import extract_codes
from stage1_vqvae.settings import ExtractCodes, TrainVQVAE
from stage1_vqvae.settings import check as check_codec
from stage1_vqvae.train import train_vqvae
from stage2_prior.run import written_steps
from vq_prior.cli import deciding
from vq_prior.cli.clock import FILE as CLOCK
from vq_prior.cli.clock import Clock
from vq_prior.cli.plan import PLAN, Plan, PriorPlan, read_plan, write_plan
from vq_prior.cli.road import OF_PICTURES, Road, name_of
from vq_prior.cli.showing import EVALUATION, FINALS, draw_measure_tell, is_whole
from vq_prior.cli.train_prior import train_prior
from vq_prior.core.config import from_json
from vq_prior.core.disk.artifacts import remove
from vq_prior.core.disk.code_store import INDEX, CodeStore
from vq_prior.core.disk.locks import claim, releasing
from vq_prior.core.disk.places import make_folder
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.processes.runtime import start_runtime
from vq_prior.core.settings import Place, changed, check_ranges, given_names, names_marked, overlaid, require_data
from vq_prior.core.training.runs import RunConfig, check_continues, read_run_config, run_config
from vq_prior.judge.verify import is_artefact
from vq_prior.model.inputs import fetch_codec, fetch_once
from vq_prior.settings import Train

TRAININGS = ("vqvae-training", "prior-training")
FOLDERS = (*TRAININGS, "vqvae", "codes", "prior", "model")
TIMING = ".timing"


@releasing
def train(settings: Train, *, began: float | None = None, evaluated: bool = True) -> None:
    """Go from images to RUN/model, RUN/samples.png, RUN/evaluation.json and RUN/report.html; a RUN is continued.

    Args:
        settings: What was typed.
        began: When this process began, on `time.monotonic`; None is now.
        evaluated: Whether to measure the samples.

    Raises:
        UsageError: On a setting out of range, other settings than those of RUN, or minutes that are too few.
        ArtifactError: If data, plan or a part of RUN is missing or damaged.
        Stopped: On SIGTERM or Ctrl-C during a training, after the state was saved.
    """
    began = time.monotonic() if began is None else began
    settings, plan = _rerun_of(settings)
    out = _checked(settings)
    runtime = start_runtime("fp32")
    if settings.dry_run and runtime.num_processes > 1:
        raise UsageError("--dry-run runs in one process; leave out --num-processes")
    clock = Clock(out, began)
    opening = time.monotonic()
    data = open_data_of(settings, say=runtime.say)
    road = Road(settings, out, runtime, data, time.monotonic() - opening, clock, plan)
    _require_same(road)
    if settings.dry_run:
        deciding.tell_plan(road)
        return
    if plan is not None and _is_finished(road, evaluated) and not _more_minutes(road):
        runtime.say(_finished_in_words(road))
        return
    if plan is not None and settings.minutes is not None and settings.minutes < (plan.allowed() or 0):
        runtime.say(f"{out} was planned for {plan.allowed():g} minutes, and that plan is followed")
    if runtime.is_main:
        claim(out)
        if settings.overwrite:
            _clear(out)
    runtime.barrier()
    with _kept_clock(road):
        _go(road, evaluated)


def _rerun_of(settings: Train) -> tuple[Train, Plan | None]:
    """Return the settings with the folder that is written, and with those of the RUN there that were not typed."""
    require_data(settings.data)
    out = settings.out or Path("runs") / name_of(settings.data)
    settings = changed(settings, out=out)
    plan = None if settings.overwrite else read_plan(out)
    if plan is None:
        return settings, None
    saved = from_json(Train, plan.settings, f"{out / PLAN}: settings")
    places = names_marked(Train, Place) - {"from_model"}
    leave = given_names(settings) | places | {"overwrite", "dry_run", "minutes"}
    settings = overlaid(settings, saved, leave=leave)
    if settings.minutes is None:
        settings = changed(settings, minutes=plan.allowed())
    return settings, plan


def _checked(settings: Train) -> Path:
    """Return RUN after all checks that need no data; raises `UsageError`."""
    assert settings.out is not None
    check_ranges(settings)
    own = OF_PICTURES
    check_codec(TrainVQVAE(data=settings.data, out=settings.out, **{name: getattr(settings, name) for name in own}))
    if settings.from_model is not None:
        for name in own:
            if name in given_names(settings):
                flag = name.replace("_", "-")
                raise UsageError(f"--{flag} cannot go with --from, whose codec has its form of images; leave it out")
        fetch_codec(settings.from_model)
    started = [name for name in TRAININGS if (settings.out / name).exists()]
    if settings.minutes is not None and started and not (settings.out / PLAN).exists() and not settings.overwrite:
        raise UsageError(
            f"{settings.out} holds {' and '.join(started)} but no {PLAN}: other commands made it, in a time that is "
            "not known; leave out --minutes, choose another --out or pass --overwrite"
        )
    return settings.out


def _require_same(road: Road) -> None:
    """Raise `UsageError` unless data and settings are those of the plan."""
    if road.plan is None:
        return
    now = run_config("train", road.settings, {"data": road.data.data_id})
    then = RunConfig(1, "train", road.plan.settings, {"data": road.plan.data_id})
    check_continues(then, now, road.out, settings=road.settings)


def _clear(out: Path) -> None:
    """Remove what a former run wrote, as --overwrite asks."""
    for name in TRAININGS:
        claim(out / name)
    for path in [out / name for name in FOLDERS]:
        if is_artefact(path):
            remove(path)
    for name in (PLAN, CLOCK, *FINALS):
        (out / name).unlink(missing_ok=True)


@contextlib.contextmanager
def _kept_clock(road: Road) -> Iterator[None]:
    """Keep the clock of RUN, on the main process, while a block runs; one that may not begin leaves nothing."""
    if not road.runtime.is_main:
        yield
        return
    made = not road.out.exists()
    make_folder(road.out)
    remove(road.out / TIMING)
    road.clock.start()
    try:
        yield
    except UsageError:
        road.clock.stop()
        if made and not (road.out / PLAN).exists():
            (road.out / CLOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                road.out.rmdir()
        raise
    finally:
        road.clock.stop()
        remove(road.out / TIMING)


def _go(road: Road, evaluated: bool) -> None:
    """Do all that is left to do."""
    out, runtime = road.out, road.runtime
    if road.plan is None:
        _write(road, deciding.first_plan(road, out / TIMING))
    assert road.plan is not None
    if not _has_codes(road):
        if road.settings.from_model is None:
            road.stage(1, "training the codec: images -> codes -> images")
            train_vqvae(road.codec_settings(road.plan.codec.settings))
            codec = str(out / "vqvae")
        else:
            road.stage(1, f"no codec is trained: that of {road.settings.from_model} stays")
            codec = str(fetch_once(road.settings.from_model))
        road.stage(2, "writing the codes of every image")
        extract_codes(ExtractCodes(codec=codec, out=out / "codes", **road.of_data()))
    if not road.plan.prior:
        _write(road, road.plan.and_then(deciding.prior_part(road)))
    for number, part in enumerate(road.plan.prior):
        if not _is_behind(road, part, last=number == len(road.plan.prior) - 1):
            road.stage(3, "training the prior over the codes")
            train_prior(road.prior_settings(part))
    if _more_minutes(road):
        _train_on(road)
    if not runtime.is_main:  # what is left is done by one
        return
    num_images = road.plan.prior[-1].num_images if evaluated else 0
    told = "drawing samples, measuring them" if num_images else "drawing samples"
    road.stage(4, f"{told}, and writing a page about it all")
    draw_measure_tell(out, seed=road.settings.seed, num_images=num_images, of_data=road.of_data())
    _tell_end(road)


def _write(road: Road, plan: Plan) -> None:
    """Write the plan, on the main process, and let every process go on with what is on disk."""
    if road.runtime.is_main:
        write_plan(road.out, plan)
    road.runtime.barrier()
    road.plan = read_plan(road.out)


def _has_codes(road: Road) -> bool:
    """Return whether RUN/codes holds the codes of these data by the codec that is there: then both are done."""
    if not (road.out / "codes" / INDEX).is_file():
        return False
    from stage1_vqvae.codecs import find_codec, open_codec

    store = CodeStore.open(road.out / "codes")
    if store.index.data.id != road.data.data_id:
        return False
    if road.settings.from_model is not None:
        return True  # train-prior compares them with the codec of --from
    try:
        return open_codec(find_codec(road.out)).codec_id == store.index.codec.id
    except ArtifactError:
        return False


def _is_behind(road: Road, part: PriorPlan, *, last: bool) -> bool:
    """Return whether the prior has been trained by this part of the plan already, and further."""
    steps, config = part.settings.get("steps"), road.out / "prior-training" / "config.json"
    if not config.exists():
        return False
    if last:
        # It is joined after the prior was written.
        return steps is not None and written_steps(road.out / "model" / "prior") == steps
    return steps is None or read_run_config(config).settings["steps"] > steps


def _more_minutes(road: Road) -> bool:
    """Return whether more minutes were asked for than the plan has."""
    assert road.plan is not None
    minutes, planned = road.settings.minutes, road.plan.allowed()
    if minutes is None:
        return False
    return minutes > planned if planned is not None else 60 * minutes > road.spent()


def _train_on(road: Road) -> None:
    """Train the prior of a finished RUN to more steps, where the minutes that were added are worth it."""
    assert road.plan is not None
    part = deciding.further_part(road)
    if part is None:
        return
    if road.runtime.is_main:
        for name in FINALS:  # of the prior before: they are made anew
            (road.out / name).unlink(missing_ok=True)
    _write(road, road.plan.and_then(part))
    road.stage(3, "training the prior on")
    train_prior(road.prior_settings(part))


def _is_finished(road: Road, evaluated: bool) -> bool:
    evaluated = evaluated and road.plan is not None and bool(road.plan.prior) and road.plan.prior[-1].num_images > 0
    wanted = [name for name in FINALS if evaluated or name != EVALUATION]
    return (road.out / "model" / "config.json").is_file() and all(is_whole(road.out / name) for name in wanted)


def _finished_in_words(road: Road) -> str:
    assert road.plan is not None
    planned = road.plan.allowed()
    if planned is None:
        more = "--minutes train on"
    else:
        more = (
            f"it took {road.clock.seconds() / 60:.1f} minutes and was planned for {planned:g}; more --minutes train on"
        )
    return f"{road.out} is finished; nothing to do ({more})"


def _tell_end(road: Road) -> None:
    """Say where to look, and what to do next."""
    out, names = road.out, road.data.label_names
    seconds, allowed = road.clock.seconds(), None if road.plan is None else road.plan.allowed()
    took = f"{seconds:.0f} s" if allowed is None else f"{seconds / 60:.1f} of {allowed:g} minutes"
    print(f"done in {took}: look at {out / 'samples.png'}, the model is {out / 'model'}")
    label = f" --labels {names[0]}" if names else ""
    print(f"next: vq-prior generate --model {out / 'model'}{label} --num-images 16 --out {out / 'samples'}", flush=True)
