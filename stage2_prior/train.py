"""Training the prior: one flat loop over token sequences.

Letters: B global batch, T tokens of a sequence, W processes.
"""

import dataclasses
import time
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stage2_prior.architecture import twin_of
from stage2_prior.baselines import bits_per_dimension
from stage2_prior.calibrate import calibrate
from stage2_prior.conditions import Conditioned
from stage2_prior.fine_tuning import merged, prior_id
from stage2_prior.opening import begin
from stage2_prior.plan import plan_lines, size_lines
from stage2_prior.prior import CausalPrior, save_prior, shifted, token_nats
from stage2_prior.run import Progress, Training, resume, save, written_steps
from stage2_prior.sampling import sample_tokens
from stage2_prior.sampling_settings import temperature_text
from stage2_prior.sequences import drop_tokens
from stage2_prior.settings import TrainPrior, filled
from vq_prior.core.disk.artifacts import new_folder, remove
from vq_prior.core.disk.locks import releasing
from vq_prior.core.disk.records import TrainingRecord, command_line, write_record
from vq_prior.core.errors import NumericError, Stopped
from vq_prior.core.processes.collectives import sum_over_processes
from vq_prior.core.processes.control import signal_control
from vq_prior.core.processes.gradients import StepSums
from vq_prior.core.processes.ordered_sums import TreeSum
from vq_prior.core.processes.runtime import cut, unwrap
from vq_prior.core.processes.sharding import gathered, is_sharded, whole
from vq_prior.core.processes.threads import threads_record, using_threads
from vq_prior.core.spec import Codec
from vq_prior.core.training.memory import memory_advice
from vq_prior.core.training.optim import lr_at, set_learning_rate
from vq_prior.core.training.runs import (
    RunLog,
    check_continues,
    explained,
    open_run,
    read_run_config,
    require_finite,
    require_free_space,
    run_config,
)

EVAL_ROWS_PER_CALL = 128
NUM_PICTURES = 40


@releasing
@using_threads()
def train_prior(settings: TrainPrior, codec: Codec | None = None, base: CausalPrior | None = None) -> Path:
    """Return RUN/prior, the folder of a prior trained on a code store.

    Continues the run in `settings.out` if there is one; a finished one is left as it is. With
    `settings.dry_run` nothing is written.

    Args:
        settings: What to train, on what.
        codec: Decodes the sample grids drawn while training; must be the codec of the codes.
        base: The prior that `settings.from_model` names, already loaded; None loads it from there.

    Raises:
        UsageError: On a setting out of range, or other settings than those of the run in RUN.
        ArtifactError: If the code store or the base is missing, damaged, or of another codec.
        NumericError: If the loss or a gradient is not finite.
        Stopped: On SIGTERM or Ctrl-C, after the state was saved.
    """
    begun = begin(settings, codec, base)
    typed, training, store = settings, begun.training, begun.store
    runtime, settings = training.runtime, training.settings
    if settings.dry_run:
        seconds = min(_timed(update, training) for _ in range(3))
        if runtime.is_main:
            print("\n".join(plan_lines(training, seconds)))
        return training.final
    inputs = {"codes": store.store_id} | ({"from": prior_id(begun.base)} if begun.base is not None else {})
    config = run_config("train-prior", settings, inputs)
    need = 8 * sum(p.numel() for p in training.prior.model.parameters()) * 4
    require_free_space(training.folder, need)
    if settings.overwrite and runtime.is_main:
        remove(training.final)
    if not settings.overwrite and (training.folder / "config.json").exists():
        check_continues(read_run_config(training.folder / "config.json"), config, training.folder, settings=settings)
        resume(training)
    how: dict[str, Any] = {"overwrite": settings.overwrite, "is_main": runtime.is_main, "settings": settings}
    changes = open_run(training.folder, config, step=training.step, **how)
    runtime.barrier()
    if training.done() and written_steps(training.final) == training.step:
        if runtime.is_main:
            print(f"{training.final} is finished ({training.ending()}); pass --overwrite to train anew")
        return training.final
    with memory_advice(settings, runtime):
        if not training.step:
            seconds = min(_timed(_without_update, training) for _ in range(2))
            runtime.say("\n".join(size_lines(training, seconds)))
        run_steps(training)
    command = command_line("train-prior", explained(typed, settings, begun.chosen))
    source = store.index.data
    finish(training, TrainingRecord(1, command, source.source, source.id, len(store), 0, {}, changes))
    return training.final


def passes(t: Training, step: int) -> StepSums:
    """Do the forward and backward passes of one step; every parameter's gradient is that of `train_nats`.

    `train_nats` is the mean nats per token of the global batch. The softmax is over the ids legal at each position;
    class and null tokens take no probability.
    """
    s, layout, batch_size = t.settings, t.prior.layout, filled(t.settings.batch_size)
    tokens, conditioned = t.train.conditioned(t.rows(step))
    if layout.num_classes or conditioned.columns:
        conditioned = conditioned.dropped(layout, rate=filled(s.label_dropout), seed=s.seed, step=step)
    inputs = drop_tokens(
        shifted(layout, tokens, conditioned.labels), layout, rate=filled(s.token_dropout), seed=s.seed, step=step
    )
    sums, pieces = StepSums(t.runtime, t.model), t.runtime.pieces(batch_size, s.gradient_accumulation_steps)
    t.prior.model.zero_grad(set_to_none=True)
    for piece in pieces:
        given_tokens, wanted = (part[piece].to(t.runtime.device, non_blocking=True) for part in (inputs, tokens))
        with sums.piece(last=piece is pieces[-1]):
            columns = conditioned[piece].to(t.runtime.device).columns
            nats = token_nats(layout, t.model(given_tokens, columns), wanted).sum() / (batch_size * layout.num_drawn)
            sums.backward(nats, {"train_nats": nats})
    return sums


def update(t: Training) -> dict[str, Tensor]:
    """Do one optimiser step and return what was measured on the way, the same on every process.

    Raises:
        NumericError: Before the update, if the loss or the gradient is not finite.
    """
    s = t.settings
    rate = lr_at(
        t.step,
        steps=filled(s.steps),
        peak=filled(s.learning_rate),
        warmup_steps=filled(s.warmup_steps),
        decay_fraction=s.decay_fraction,
    )
    for optimizer in t.optimizers.values():
        set_learning_rate(optimizer, rate)
    measured = passes(t, t.step).finish()
    norm = whole(nn.utils.clip_grad_norm_(t.prior.model.parameters(), s.max_grad_norm))
    require_finite(t.folder, t.step, t.rows(t.step), measured["train_nats"], norm, main=t.runtime.is_main)
    for optimizer in t.optimizers.values():
        optimizer.step()
    t.step += 1
    t.average.update(t.prior.model, t.step)
    return measured


def run_steps(t: Training) -> None:
    """Train from the present step to the last, measuring and saving on the way; raises `Stopped` on a signal."""
    s, steps = t.settings, filled(t.settings.steps)
    eval_every, log_every, sample_every = filled(s.eval_every), filled(s.log_every), filled(s.sample_every)
    log = RunLog(t.folder, step=t.step, steps=steps, is_main=t.runtime.is_main, report_to=s.report_to)
    codec, threads = t.codec, t.runtime.step_threads(t.folder, s.threads)
    if codec is not None and is_sharded(next(t.prior.model.parameters())):
        codec = None
        log.say("no sample grids while training: no process holds the whole prior (--fsdp)")
    with signal_control() as control:
        try:
            while not t.done():
                with threads.step(t.step):
                    measured = update(t)
                t.window.add(measured)
                t.window.steps += 1
                log.advance()
                measure = t.step % eval_every == 0 or t.step == steps
                values: dict[str, float] = {}
                if measure or t.step % log_every == 0:
                    values |= t.window.read()
                if measure:
                    values |= evaluate(t)
                if values:
                    values["learning_rate"] = t.optimizers["adamw"].param_groups[0]["lr"]
                    log.write(t.step, values)
                if codec is not None and t.runtime.is_main and (t.step % sample_every == 0 or t.done()):
                    save_samples(t, codec, log)
                request = control.agreed()
                if t.step % s.checkpoint_every == 0 or t.done() or request.save:
                    save(t)
                if request.save and not request.stop:
                    log.say(f"state saved after step {t.step}, as SIGUSR2 asks")
                if request.stop and not t.done():
                    raise Stopped(f"stopped after step {t.step}, state saved; run the same command to continue")
        finally:
            log.close()


def held_out_loss(t: Training) -> tuple[float, list[float]]:
    """Return mean nats per token of the held-out rows under the model's present weights, over all processes.

    Beside it, the same of the codes of each level, where there are several.

    When fine-tuning with classes, each row counts with its class and without: the base may know the class well and
    the new data not at all, and the weights that are kept must do both.
    """
    model, layout, device = unwrap(t.model), t.prior.layout, t.runtime.device
    some = layout.num_classes > 0 or t.prior.num_vectors > 0
    both = t.settings.from_model is not None and some and t.prior.unconditional
    sums, pieces = TreeSum(), t.runtime.pieces(len(t.held_out))
    levels = layout.levels_at() if len(layout.levels) > 1 else ()
    # As many calls on every process: where parameters are sharded, all gather them together.
    calls = -(-len(t.held_out) // (t.runtime.num_processes * len(pieces) * EVAL_ROWS_PER_CALL))
    with torch.no_grad():
        for piece in pieces:
            total = torch.zeros(1 + len(levels), dtype=torch.float64)
            for call in cut(piece, calls):
                tokens, conditioned = t.held_out.conditioned(call)
                prompts = [conditioned, conditioned.null(layout)] if both else [conditioned]
                for each in prompts:
                    inputs, wanted = shifted(layout, tokens, each.labels).to(device), tokens.to(device)
                    columns = each.to(device).columns
                    nats = token_nats(layout, model(inputs, columns), wanted).double()
                    parts = [nats, *(nats[:, level.positions] for level in levels)]
                    total += torch.stack([part.sum() for part in parts]).cpu() / len(prompts)
            sums.add(total)
    whole = sums.total()
    assert whole is not None
    whole = sum_over_processes(whole.to(device) if device.type != "mps" else whole)
    total_nats, *of_levels = whole.tolist()
    sizes = [level.num_tokens for level in layout.levels]
    of_each = [float(nats) / (len(t.held_out) * size) for nats, size in zip(of_levels, sizes, strict=False)]
    return float(total_nats) / (len(t.held_out) * layout.num_drawn), of_each


def evaluate(t: Training) -> dict[str, float]:
    """Return the measurements of the averaged weights, and keep these weights if they are the best so far."""
    with t.average.swapped_into(t.prior.model):
        nats, of_levels = held_out_loss(t)
        if not isfinite(nats):
            raise NumericError(f"the held-out loss after step {t.step} is not finite; lower --learning-rate")
        if t.progress.best_nats is None or nats < t.progress.best_nats:
            t.progress = Progress(nats, t.step, 0, tuple(of_levels))
            t.best = {name: tensor.detach().clone() for name, tensor in t.prior.model.state_dict().items()}
        else:
            t.progress.misses += 1
    b = t.baselines
    return {
        "held_out_nats": nats,
        **{f"held_out_nats.{number}": each for number, each in enumerate(of_levels)},
        "bits_per_dimension": bits_per_dimension(nats, t.prior.spec, t.prior.layout.num_drawn),
        "uniform": b.uniform,
        "unigram": b.unigram,
        "previous_token": b.previous_token,
    }


def save_samples(t: Training, codec: Codec, log: RunLog) -> None:
    """Write a grid of samples of the averaged weights to `images/`; images only, other ranks are left out."""
    layout, given = t.prior.layout, None
    several = layout.num_classes > 1
    columns = min(layout.num_classes, 10) if several else 8
    labels = torch.arange(NUM_PICTURES) % columns if several else torch.zeros(NUM_PICTURES, dtype=torch.int64)
    conditioned = Conditioned(labels)
    if layout.given_levels or t.prior.num_vectors:  # those of held-out rows
        tokens, conditioned = t.held_out.conditioned(np.arange(NUM_PICTURES) % len(t.held_out))
        given = tokens.clone()
        given[:, layout.drawn_positions] = -1
    with t.average.swapped_into(t.prior.model):
        tokens = sample_tokens(t.prior, conditioned, seed=t.settings.seed, indices=range(NUM_PICTURES), given=given)
    images = codec.decode(layout.to_codes(tokens))
    log.show(t.step, "samples", codec.modality.show.sheet(images, columns=columns))


def best_prior(t: Training) -> CausalPrior | None:
    """Return, on the main process, the prior with the best weights, a plain stock model; every process must call it."""
    if is_sharded(next(t.prior.model.parameters())):
        best = gathered(t.best, keep=t.runtime.is_main)
        if not t.runtime.is_main:
            return None
        model = twin_of(t.prior.model).to(t.runtime.device)
        model.load_state_dict(best)
        return dataclasses.replace(t.prior, model=model.eval(), _decoders=None)
    if not t.runtime.is_main:
        return None
    t.prior.model.load_state_dict(t.best)
    t.prior.model.eval()
    return merged(t.prior)


def finish(t: Training, record: TrainingRecord) -> None:
    """Choose the sampling settings on held-out rows, write RUN/prior, and say how good it is."""
    final = best_prior(t)
    if final is not None:
        final.sampling = calibrate(final, *t.held_out.conditioned(slice(None))).best
        final.trained_steps = t.step
        b, best = t.baselines, t.progress.best_nats
        assert best is not None
        bits = bits_per_dimension(best, t.prior.spec, t.prior.layout.num_drawn)
        measured: dict[str, Any] = {
            "nats_per_token": best,
            "bits_per_dimension": bits,
            "previous_token": b.previous_token,
            "unigram": b.unigram,
            "uniform": b.uniform,
            **threads_record(t.folder),
        }
        if b.levels:
            measured["levels"] = [
                {"nats_per_token": nats, **dataclasses.asdict(each)}
                for nats, each in zip(t.progress.level_nats, b.levels, strict=True)
            ]
        with new_folder(t.final) as staging:
            save_prior(final, staging)
            write_record(staging, dataclasses.replace(record, num_held_out=len(t.held_out), measured=measured))
        print(
            f"held-out nats per token {best:.4f} ({bits:.4f} code bits per dimension)"
            f" against {b.previous_token:.4f} previous token, {b.unigram:.4f} unigram, {b.uniform:.4f} uniform"
        )
        for number, (nats, each) in enumerate(zip(t.progress.level_nats, b.levels, strict=False)):
            above = "" if each.level_above is None else f", {each.level_above:.4f} level above"
            known = f"{each.previous_token:.4f} previous token, {each.unigram:.4f} unigram{above}"
            given_ = " (given, not drawn)" if number in t.prior.layout.given_levels else ""
            print(f"level {number}: {nats:.4f} against {known}{given_}")
        print(
            f"best at step {t.progress.best_step}, {t.ending()}; measured sampling settings: "
            f"temperature {temperature_text(final.sampling.temperature)}, guidance {final.sampling.guidance_scale:g}"
        )
        print(f"wrote {t.final}", flush=True)
        if t.settings.codec is None:
            print(
                f"next: vq-prior assemble --codec CODEC --prior {t.final} --out {t.settings.out / 'model'}", flush=True
            )
    t.runtime.barrier()


def _without_update(t: Training) -> dict[str, Tensor]:
    """Do the passes of a step and return what was measured; nothing of them is kept."""
    measured = passes(t, t.step).finish()
    t.prior.model.zero_grad(set_to_none=True)
    return measured


def _timed(function: Callable[[Training], dict[str, Tensor]], t: Training) -> float:
    begin = time.perf_counter()
    float(function(t)["train_nats"])
    return time.perf_counter() - begin
