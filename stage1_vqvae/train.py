"""Training of the codec: one flat loop. Letters: B batch."""

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from stage1_vqvae.adversary import MakeAdversary
from stage1_vqvae.architecture import Architecture, VQVAEConfig
from stage1_vqvae.collapse import COLLAPSED, named_use, remedy, watch
from stage1_vqvae.data.loading import load_rows
from stage1_vqvae.data.sources import Data, open_data_of, require_labels
from stage1_vqvae.discriminator import adversary_of
from stage1_vqvae.evaluate import evaluate_codec, reconstructed, summary
from stage1_vqvae.factors import factors_of
from stage1_vqvae.modalities import preprocessing
from stage1_vqvae.model import VQVAE, save_codec
from stage1_vqvae.passes import passes
from stage1_vqvae.perceptual import Making, kind_of
from stage1_vqvae.plan import describe, dry_run_text, measured_cost
from stage1_vqvae.quantizers import quantizer_class
from stage1_vqvae.run import Training, is_result_of, new_average, prepare, resume, save
from stage1_vqvae.settings import TINY, TrainVQVAE, check, resolve, trained_form
from stage1_vqvae.starting import base_id, open_base, take_weights, with_base
from vq_prior.core.disk.artifacts import new_folder, remove
from vq_prior.core.disk.checkpoints import Checkpoint, latest_checkpoint
from vq_prior.core.disk.locks import releasing
from vq_prior.core.disk.records import TrainingRecord, command_line, public_name, write_record
from vq_prior.core.errors import Stopped, UsageError
from vq_prior.core.modality import Stored
from vq_prior.core.processes.collectives import gather_rows
from vq_prior.core.processes.control import signal_control
from vq_prior.core.processes.runtime import Runtime, has_native_bf16, start_runtime
from vq_prior.core.processes.threads import threads_record, using_threads
from vq_prior.core.training.memory import memory_advice
from vq_prior.core.training.optim import lr_at, set_learning_rate
from vq_prior.core.training.randomness import in_equal_parts, keyed_generator
from vq_prior.core.training.runs import (
    RunConfig,
    RunLog,
    beside_run,
    check_continues,
    continued,
    explained,
    open_run,
    read_run_config,
    require_finite,
    require_free_space,
    run_config,
)

NUM_SHOWN = 32
START_VECTORS_PER_CODE = 64


@releasing
@using_threads()
def train_vqvae(settings: TrainVQVAE, make_adversary: MakeAdversary | None = None) -> Path:
    """Train a codec and return its folder RUN/vqvae; a run that is there is continued.

    Args:
        settings: What to train, on what.
        make_adversary: Makes a second network that is trained beside the codec, see `adversary.py`; None trains none.

    Raises:
        UsageError: If a setting is out of range, or RUN holds a run with other settings.
        ArtifactError: If the data are missing, empty or damaged.
        NumericError: If the loss or a gradient is not finite; nothing of that step is kept.
        Stopped: If a signal asked for it; the state is saved.
    """
    check(settings)
    typed, folder, final = settings, settings.out / "vqvae-training", settings.out / "vqvae"
    settings = settings if settings.overwrite else continued(settings, folder)
    quantizer_class(typed.quantizer)
    runtime = start_runtime(settings.precision, reproducible=settings.reproducible, threads=settings.threads)
    notes: list[str] = []
    data = open_data_of(settings, say=notes.append)

    base = open_base(settings)

    def chosen(settings: TrainVQVAE, here: Runtime = runtime) -> tuple[Runtime, TrainVQVAE]:
        return fitted_to_machine(
            here, resolve(with_base(settings, base), data.facts(), here.device.type, modality=data.modality)
        )

    with beside_run(folder, overwrite=settings.overwrite):
        runtime, settings = chosen(settings)
    for line in (runtime.describe(), *notes):
        runtime.say(line)
    balanced = in_equal_parts(require_labels(data)) if settings.balance else None
    assert settings.batch_size is not None
    runtime.require_rows(settings.batch_size, settings.gradient_accumulation_steps)
    model, form = new_codec(settings), trained_form(settings)
    for line in (*data.told_of(form[1]), describe(settings, model), *take_weights(model, base)):
        runtime.say(line)
    making = making_of(settings, model, data, runtime)
    perceptual = None if making is None else kind_of(making.name)(making)
    if settings.dry_run:
        runtime.say(dry_run_text(settings, measured_cost(settings, runtime, model, perceptual)))
        return final
    require_free_space(folder, 12 * sum(tensor.nbytes for tensor in model.state_dict().values()))
    inputs = {"data": data.data_id} | ({} if make_adversary is None else {"adversary": make_adversary.__name__})
    inputs |= {} if perceptual is None else perceptual.inputs()
    own_adversary = adversary_of(settings.loss)
    config = run_config("train-vqvae", settings, inputs | ({} if base is None else {"from": base_id(base)}))
    checkpoint = _checkpoint_of(typed, runtime, folder, config)
    if checkpoint is not None and checkpoint.step >= (settings.steps or 0) and is_result_of(final, checkpoint):
        runtime.say(f"{final} is finished ({checkpoint.step} steps); nothing to do")
        return final
    # Every row is read before anything is created at --out.
    workers = settings.num_workers
    train, held_out = (load_rows(rows, *form, num_workers=workers) for rows in (data.train, data.validation))
    if checkpoint is None:
        with memory_advice(settings, runtime):
            runtime.say(measured_cost(settings, runtime, model, perceptual).describe(settings.steps or 0))
    classes = 0 if data.train.labels is None else len(data.label_names)
    training = prepare(
        settings, runtime, model, train, held_out, make_adversary or own_adversary, perceptual, num_classes=classes
    )
    training.balanced = balanced
    if checkpoint is not None:
        resume(training, checkpoint)
    runtime.barrier()
    how: dict[str, Any] = {"overwrite": settings.overwrite, "is_main": runtime.is_main, "settings": typed}
    changes = open_run(folder, config, step=training.step, **how)
    if settings.overwrite and runtime.is_main:
        remove(final)
    runtime.barrier()
    with memory_advice(settings, runtime):
        if checkpoint is None and (base is None or base.spec.levels != model.spec.levels):
            start_codebook(training)
        if checkpoint is None and making is not None:
            fit_perceptual(training, making)
        if checkpoint is None and training.judge is not None:
            training.judge.fit(train, data.train.labels, classes, seed=settings.seed, runtime=runtime)
        run_steps(training)
    record = _record(explained(typed, settings, lambda some: chosen(some)[1]), data)
    finish(training, replace(record, changes=changes), final)
    runtime.barrier()
    return final


def _checkpoint_of(settings: TrainVQVAE, runtime: Runtime, folder: Path, config: RunConfig) -> Checkpoint | None:
    """Return the latest checkpoint of the run in `folder`, None if it starts; raises `UsageError` if it cannot."""
    if settings.overwrite:
        return None
    if not (folder / "config.json").exists():
        if (settings.out / "vqvae").exists():
            raise UsageError(
                f"{settings.out / 'vqvae'} exists without its training run; choose another --out or pass --overwrite"
            )
        return None
    check_continues(read_run_config(folder / "config.json"), config, folder, settings=settings)
    checkpoint, passed_over = latest_checkpoint(folder / "checkpoints")
    for line in passed_over:
        runtime.say(line)
    return checkpoint


def fitted_to_machine(runtime: Runtime, settings: TrainVQVAE) -> tuple[Runtime, TrainVQVAE]:
    """Return both with precision and optimiser chosen where left out: bf16 and Muon above 16 px on a CPU that computes
    in bf16.
    """
    longest = max(trained_form(settings)[1].shape)
    fast = runtime.device.type == "cpu" and has_native_bf16("cpu") and longest > TINY
    if settings.precision is None and fast:
        runtime = replace(runtime, precision="bf16")
    # Muon multiplies in bf16, which who asks for fp32 does not want.
    optimizer = settings.optimizer or ("muon" if fast and runtime.precision == "bf16" else "adamw")
    return runtime, replace(settings, precision=runtime.precision, optimizer=optimizer)


def _record(typed: TrainVQVAE, data: Data) -> TrainingRecord:
    """Return what the card will tell of this training; the results are filled in at its end."""
    return TrainingRecord(
        format_version=1,
        command=command_line("train-vqvae", typed),
        data=public_name(typed.data),
        data_id=data.data_id,
        num_train=len(data.train),
        num_held_out=len(data.validation),
        measured={},
    )


def new_codec(settings: TrainVQVAE) -> VQVAE:
    """Return an untrained codec of resolved settings; its weights are a function of the seed."""
    model, (modality, transform) = settings.model, trained_form(settings)
    assert model.downsampling
    assert model.width
    assert model.residual_width
    assert model.num_residual_blocks is not None
    architecture = Architecture(
        channels=transform.channels,
        shape=transform.shape,
        downsampling=model.downsampling,
        width=model.width,
        residual_width=model.residual_width,
        num_residual_blocks=model.num_residual_blocks,
        quantizer=settings.quantizer,
        network=model.network,
        attention=model.attention,
        blocks_per_resolution=model.blocks_per_resolution,
        grids=settings.levels,
        grid_factor=model.grid_factor,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(keyed_generator(settings.seed, 0, "codec weights").integers(2**63)))
        return VQVAE(VQVAEConfig(architecture), preprocessing(modality, transform))


def making_of(settings: TrainVQVAE, model: VQVAE, data: Data, runtime: Runtime) -> Making | None:
    """Return what the perceptual term is made from; None without one."""
    if settings.loss.perceptual is None:
        return None
    labels, names = data.train.labels, data.label_names
    return Making(settings.loss.perceptual, model.spec, labels, len(names), settings.seed, runtime.say)


def fit_perceptual(t: Training, making: Making) -> None:
    """Fit the perceptual term, on the first process, and give every process its tensors."""
    assert t.perceptual is not None
    if t.perceptual.fitted:
        fitted = kind_of(making.name)(making)
        if t.runtime.is_main:
            fitted.fit(making, t.train)
        for name, tensor in t.perceptual.state_dict().items():
            tensor.copy_(gather_rows(fitted.state_dict()[name][None].to(t.runtime.device))[0])


@torch.no_grad()
def start_codebook(t: Training) -> None:
    """Set the codebook from latents of the untrained encoder, gathered from all processes."""
    model, runtime, train = t.model, t.runtime, t.train
    rng = keyed_generator(t.settings.seed, 0, "codebook start")
    wanted = max(-(-START_VECTORS_PER_CODE * level.num_codes // level.num_tokens) for level in model.spec.levels)
    rows = rng.choice(len(train), size=min(max(wanted, runtime.num_processes), len(train)), replace=False)
    pieces = [piece for piece in runtime.pieces(len(rows)) if piece.stop > piece.start]
    for grid, quantizer in enumerate(model.quantizers):
        vectors = [torch.zeros(0, quantizer.code_dim, device=runtime.device)]
        for piece in pieces:
            latents = model.latents_of(grid, train.batch(rows[piece], runtime.device))
            vectors.append(latents.reshape(-1, quantizer.code_dim).clone())
        quantizer.start(gather_rows(torch.cat(vectors)), rng)
    t.average = new_average(t.settings, model)


def run_steps(t: Training) -> None:
    """Train from the present step to the last; the last step is checkpointed. Raises `Stopped` on a signal.

    A step is a function of (seed, step) and the state a checkpoint holds; what is logged never feeds back.
    """
    s, runtime = t.settings, t.runtime
    assert s.steps is not None
    log = RunLog(t.folder, step=t.step, steps=s.steps, is_main=runtime.is_main, report_to=s.report_to)
    if t.step:
        log.say(f"continuing from step {t.step}")
    threads = runtime.step_threads(t.folder, s.threads)
    window_start, measured_steps, ahead = time.monotonic(), 0, None
    with signal_control() as control:
        while not t.done():
            with threads.step(t.step):
                images = t.train.to_values(_stored(t, t.step) if ahead is None else ahead, runtime.device)
                learning_rate, (numbers, total, norm) = set_rates(t), passes(t, images)
                if runtime.device.type == "cuda":  # which computes: what comes next waits for it
                    ahead = _stored(t, t.step + 1)
                require_finite(t.folder, t.step, t.rows(t.step), total, norm, main=runtime.is_main)
                t.window.add(numbers)
                update(t, learning_rate)
            measured_steps += 1
            log.advance()
            judged = judge(t, log)
            if t.step % s.log_every == 0 or t.done() or judged:
                seconds, num_images = time.monotonic() - window_start, t.window.steps * t.batch_size
                uses, values = t.window.counts.read(reset=True), t.window.read()
                values |= named_use(uses) | t.counted | _error_without(t) | judged
                values |= {"learning_rate": learning_rate, "images_per_second": measured_steps * t.batch_size / seconds}
                log.write(t.step, values)
                watch(uses, t.model.spec.levels, num_images, t.step, s, log)
                t.counted, window_start, measured_steps = {"num_revived": 0.0}, time.monotonic(), 0
            request = control.agreed()
            if t.step % s.checkpoint_every == 0 or t.done() or request.save:
                save(t)
                if runtime.is_main:
                    log.show(t.step, "reconstructions", _sheet(t))
                runtime.barrier()
            if request.save and not request.stop:
                log.say(f"state saved after step {t.step}, as SIGUSR2 asks")
            if request.stop and not t.done():
                log.close()
                raise Stopped(f"stopped after step {t.step}, state saved; run the same command to continue")
    log.close()


def set_rates(t: Training) -> float:
    """Give the codec's optimisers the learning rate of this step, forget their gradients, and return the rate."""
    s = t.settings
    assert s.steps is not None
    assert s.learning_rate is not None
    learning_rate = lr_at(
        t.step,
        steps=s.steps,
        peak=s.learning_rate,
        warmup_steps=s.warmup_steps,
        decay_fraction=s.decay_fraction,
        schedule=s.schedule,
    )
    for optimizer in t.optimizers.values():
        set_learning_rate(optimizer, learning_rate)
        optimizer.zero_grad(set_to_none=True)
    return learning_rate


def update(t: Training, learning_rate: float) -> None:
    """Take the optimiser step that the gradients ask for, and all that follows one."""
    for optimizer in t.optimizers.values():
        optimizer.step()
    if t.adversary is not None and t.adversary.learns(t.progress):
        t.adversary.step(learning_rate)
    if "quantizer" not in t.settings.freeze:
        rng = keyed_generator(t.settings.seed, t.step, "quantizer")
        for name, count in t.model.quantizer.update(rng).items():
            t.counted[name] = t.counted.get(name, 0.0) + count
    t.step += 1
    t.window.steps += 1
    t.average.update(t.model, t.step)


def judge(t: Training, log: RunLog) -> dict[str, float]:
    """Return the distance of held-out reconstructions, {} where this step is not judged; keep the best weights.

    An adversary under which it gets worse and worse is ended.
    """
    every = t.settings.judge_every
    starts = t.adversary is not None and t.adversary.starts_to_pull(t.step, t.settings.steps or 1)
    if t.judge is None or every is None or not (t.step % every == 0 or starts or t.done()):
        return {}
    with t.average.swapped_into(t.model):
        distance = t.judge.distance(t.model, t.runtime)
    ruins = t.kept.note(t.step, distance, t.average.tensors)
    if t.adversary is None or t.adversary.pulls(t.progress) == 0:
        t.kept.worse = 0  # what it did not do is not counted against it
    elif ruins:
        t.adversary.stopped_at = t.step
        log.say(
            f"step {t.step}: held-out reconstructions are at distance {distance:.4g}, {t.kept.distance:.4g} after step "
            f"{t.kept.step}; the {t.adversary.name} is ended, the weights of step {t.kept.step} are kept"
        )
    return {"rfid": distance}


def _stored(t: Training, step: int) -> Stored:
    """Return this process's share of the rows of a step, [share, ...], as they are stored."""
    s, share = t.settings, t.runtime.share(t.batch_size)
    stored = t.train.stored(t.rows(step)[share])
    if s.augment:
        factors = factors_of(s.model.downsampling or 2, len(t.train.transform.shape))
        rng = keyed_generator(s.seed, step, "augmentation")
        stored = t.train.modality.values.augment(stored, rng, most=min(factors) // 2, rows=share)
    return stored


def _error_without(t: Training) -> dict[str, float]:
    """Return, for each of several levels, by which share the error of some held-out images grows without it."""
    if len(t.model.spec.levels) == 1 or not t.model.separable:
        return {}
    values = t.held_out.batch(range(min(NUM_SHOWN, len(t.held_out))), t.runtime.device)
    codes = t.model.encode(values)
    whole = float((t.model.decode(codes) - values).square().mean())
    added = {}
    for number in range(len(codes)):
        left = tuple(None if n == number else level for n, level in enumerate(codes))
        error = float((t.model.decode(left) - values).square().mean())
        added[f"error_without.{number}"] = error / max(whole, 1e-12) - 1
    return added


def _sheet(t: Training) -> Any:
    originals = t.held_out.batch(range(min(NUM_SHOWN, len(t.held_out))), t.runtime.device)
    with t.average.swapped_into(t.model):
        return t.held_out.modality.show.pairs(originals, reconstructed(t.model, originals))


def finish(t: Training, record: TrainingRecord, final: Path) -> None:
    """Measure the averaged weights on the held-out images and write them as RUN/vqvae (main process)."""
    if not t.runtime.is_main:
        return
    model, device, settings = t.model, t.runtime.device, t.settings
    model.eval()
    raw = evaluate_codec(model, t.held_out, device=device)
    model.load_state_dict(t.final)
    result = evaluate_codec(model, t.held_out, device=device) | threads_record(t.folder)
    if t.kept.step is not None:
        result |= {"rfid": t.kept.distance, "kept_step": t.kept.step}
        print(f"of the weights that were judged, those of step {t.kept.step} did best: rFID {t.kept.distance:.4g}")
    with new_folder(final) as staging:
        save_codec(model, staging)
        write_record(staging, replace(record, measured=result))
    print(f"{summary(result, t.held_out.modality)} (without averaging the weights: mse {raw['mse']:.5f})")
    if (usage := min(level["usage"] for level in result["levels"])) < COLLAPSED:
        print(f"warning: only {usage:.1%} of the codes are used on the held-out images; {remedy(settings)}")
    print(f"wrote {final} (codec {model.codec_id[:12]}) and {final.parent / 'vqvae-training' / 'images'}")
    codes = final.parent / "codes"
    print(f"next: vq-prior extract-codes --codec {final} --data {shlex.quote(settings.data)} --out {codes}", flush=True)
