"""Training of the codec: one flat loop. Letters: B batch."""

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from stage1_vqvae.collapse import COLLAPSED, named_use, remedy, watch
from stage1_vqvae.data.sources import ImageData, open_data_of
from stage1_vqvae.evaluate import comparison_grid, evaluate_codec, reconstruct_pixels, summary
from stage1_vqvae.factors import factors_of
from stage1_vqvae.fast.graphs import trained_module
from stage1_vqvae.losses import reconstruction_terms, weighted_sum
from stage1_vqvae.modalities.pictures.pixels import PixelRows, Transform, load_pixels, shifted_and_mirrored
from stage1_vqvae.model import VQVAE, Architecture, VQVAEConfig, save_codec
from stage1_vqvae.plan import describe
from stage1_vqvae.quantizers import QUANTIZERS
from stage1_vqvae.settings import TINY, TrainVQVAE, check, parse_size, resolve
from vq_prior.core.config import to_json
from vq_prior.core.disk.artifacts import new_folder, remove, verify_manifest
from vq_prior.core.disk.checkpoints import Checkpoint, latest_checkpoint, save_checkpoint
from vq_prior.core.disk.components import WEIGHTS
from vq_prior.core.disk.locks import releasing
from vq_prior.core.disk.records import TrainingRecord, command_line, public_name, write_record
from vq_prior.core.disk.tensors import read_tensors
from vq_prior.core.errors import ArtifactError, Stopped, UsageError
from vq_prior.core.media import to_unit_range
from vq_prior.core.processes.collectives import gather_rows, require_same_everywhere
from vq_prior.core.processes.control import signal_control
from vq_prior.core.processes.gradients import StepSums
from vq_prior.core.processes.runtime import (
    Runtime,
    full_state,
    has_native_bf16,
    start_runtime,
)
from vq_prior.core.training.averaging import WeightAverage
from vq_prior.core.training.optim import (
    adamw_and_muon,
    load_optimizer_tensors,
    lr_at,
    optimizer_tensors,
    set_learning_rate,
)
from vq_prior.core.training.randomness import batch_rows, keyed_generator
from vq_prior.core.training.runs import (
    RunLog,
    check_continues,
    continued,
    explained,
    open_run,
    read_run_config,
    require_finite,
    require_free_space,
    run_config,
)
from vq_prior.core.training.windows import Window

START_VECTORS_PER_CODE = 64
NUM_PICTURES = 32
MUON_SHARE = 0.5  # of the learning rate: nearer to the pictures of CIFAR-10 than the whole of it


@releasing
def train_vqvae(settings: TrainVQVAE) -> Path:
    """Train a codec and return its folder RUN/vqvae; a run that is there is continued.

    Raises:
        UsageError: If a setting is out of range, or RUN holds a run with other settings.
        ArtifactError: If the data are missing, empty or damaged.
        NumericError: If the loss or a gradient is not finite; nothing of that step is kept.
        Stopped: If a signal asked for it; the state is saved.
    """
    check(settings)
    typed, folder, final = settings, settings.out / "vqvae-training", settings.out / "vqvae"
    settings = settings if settings.overwrite else continued(settings, folder)
    QUANTIZERS[settings.quantizer.name]
    runtime = start_runtime(settings.precision, reproducible=settings.reproducible)
    say = runtime.say
    notes: list[str] = []
    data = open_data_of(settings, say=notes.append)

    def chosen(settings: TrainVQVAE, here: Runtime = runtime) -> tuple[Runtime, TrainVQVAE]:
        return fitted_to_machine(here, resolve(settings, data.facts(), here.device.type))

    runtime, settings = chosen(settings)
    for line in (runtime.describe(), *notes):
        say(line)
    assert settings.batch_size is not None
    runtime.require_rows(settings.batch_size, settings.gradient_accumulation_steps)
    model = new_codec(settings)
    say(describe(settings, model))
    if settings.dry_run:
        say(_dry_run(settings, model, runtime))
        return settings.out / "vqvae"
    if final.exists() and not (folder / "config.json").exists() and not settings.overwrite:
        raise UsageError(f"{final} exists without its training run; choose another --out or pass --overwrite")
    weights_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    require_free_space(folder, 12 * weights_bytes)
    config = run_config("train-vqvae", settings, {"data": data.data_id})
    checkpoint = None
    if (folder / "config.json").exists() and not settings.overwrite:
        check_continues(read_run_config(folder / "config.json"), config, folder, settings=typed)
        checkpoint, passed_over = latest_checkpoint(folder / "checkpoints")
        for line in passed_over:
            say(line)
    if checkpoint is not None and checkpoint.step >= (settings.steps or 0) and _is_result_of(final, checkpoint):
        say(f"{final} is finished ({checkpoint.step} steps); nothing to do")
        return final
    # Every picture is decoded before anything is created at --out.
    transform = _transform(settings)
    train = load_pixels(data.train, transform, num_workers=settings.num_workers)
    validation = load_pixels(data.validation, transform, num_workers=settings.num_workers)
    runtime.barrier()
    open_run(folder, config, settings=typed, overwrite=settings.overwrite, is_main=runtime.is_main)
    if settings.overwrite and runtime.is_main:
        remove(final)
    runtime.barrier()
    average = _loop(settings, runtime, model, train, validation, checkpoint, folder)
    record = _record(explained(typed, settings, lambda some: chosen(some)[1]), data)
    _finish(settings, runtime, model, average, validation, final, record)
    runtime.barrier()
    return final


def fitted_to_machine(runtime: Runtime, settings: TrainVQVAE) -> tuple[Runtime, TrainVQVAE]:
    """Return both with what is left out chosen: above 16 px, on a CPU that computes in it, bf16 and with it Muon."""
    assert settings.image_size is not None
    fast = runtime.device.type == "cpu" and has_native_bf16("cpu") and max(parse_size(settings.image_size)) > TINY
    if settings.precision is None and fast:
        runtime = replace(runtime, precision="bf16")
    # Muon multiplies in bf16, which who asks for fp32 does not want.
    optimizer = settings.optimizer or ("muon" if fast and runtime.precision == "bf16" else "adamw")
    return runtime, replace(settings, precision=runtime.precision, optimizer=optimizer)


def _record(typed: TrainVQVAE, data: ImageData) -> TrainingRecord:
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


def _transform(settings: TrainVQVAE) -> Transform:
    assert settings.image_size is not None
    assert settings.model.channels is not None
    return Transform(*parse_size(settings.image_size), channels=settings.model.channels)


def new_codec(settings: TrainVQVAE) -> VQVAE:
    """Return an untrained codec of resolved settings; its weights are a function of the seed."""
    model, transform = settings.model, _transform(settings)
    assert model.downsampling
    assert model.width
    assert model.residual_width
    assert model.num_residual_blocks is not None
    architecture = Architecture(
        channels=transform.channels,
        shape=(transform.height, transform.width),
        downsampling=model.downsampling,
        width=model.width,
        residual_width=model.residual_width,
        num_residual_blocks=model.num_residual_blocks,
        quantizer=settings.quantizer,
        network=model.network,
        attention=model.attention,
        blocks_per_resolution=model.blocks_per_resolution,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(keyed_generator(settings.seed, 0, "codec weights").integers(2**63)))
        return VQVAE(VQVAEConfig(architecture))


def _dry_run(settings: TrainVQVAE, model: VQVAE, runtime: Runtime) -> str:
    """Return the resolved settings, memory and estimated time, from three real steps on random images."""
    from resource import RUSAGE_SELF, getrusage

    assert settings.batch_size is not None
    assert settings.steps is not None
    wrapped = runtime.wrap(model).train()
    share = runtime.share(settings.batch_size)
    images = torch.rand(share.stop - share.start, model.spec.channels, *model.spec.shape) * 2 - 1
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        terms = _forward(wrapped, images.to(runtime.device), settings, runtime)[0]
        weighted_sum(terms, settings.loss).backward()
        model.quantizer.update(keyed_generator(0, 0, "dry run"))
        seconds.append(time.monotonic() - started)
    memory = (
        torch.cuda.max_memory_allocated() if runtime.device.type == "cuda" else getrusage(RUSAGE_SELF).ru_maxrss * 1024
    )
    resolved = json.dumps(to_json(settings), indent=2)
    return (
        f"{resolved}\nmemory about {memory / 2**20:.0f} MiB a process, {min(seconds):.3f} s a step, "
        f"estimated time {min(seconds) * settings.steps / 60:.1f} minutes; nothing was written (--dry-run)"
    )


def _is_result_of(final: Path, checkpoint: Checkpoint) -> bool:
    """Return whether RUN/vqvae holds the averaged weights of this checkpoint."""
    try:
        if not verify_manifest(final):
            return False
        saved = read_tensors(final / WEIGHTS)
    except ArtifactError:
        return False
    expected = checkpoint.averages.get("vqvae", {})
    return saved.keys() == expected.keys() and all(torch.equal(saved[name], expected[name]) for name in saved)


def _forward(
    wrapped: nn.Module, images: Tensor, settings: TrainVQVAE, runtime: Runtime
) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """Return the unweighted loss terms and the codes of this process's images."""
    with runtime.autocast():
        output = wrapped(images)
    return reconstruction_terms(images, output.images, kind=settings.loss.reconstruction) | output.loss, output.codes


@torch.no_grad()
def _start_codebook(model: VQVAE, train: PixelRows, settings: TrainVQVAE, runtime: Runtime) -> None:
    """Set the codebook from latents of the untrained encoder, gathered from all processes."""
    rng = keyed_generator(settings.seed, 0, "codebook start")
    wanted = max(-(-START_VECTORS_PER_CODE * level.num_codes // level.num_tokens) for level in model.spec.levels)
    rows = rng.choice(len(train), size=min(max(wanted, runtime.num_processes), len(train)), replace=False)
    vectors = [torch.zeros(0, model.quantizer.code_dim, device=runtime.device)]
    for piece in runtime.pieces(len(rows)):
        if piece.stop > piece.start:
            images = to_unit_range(torch.from_numpy(train.batch(rows[piece])).to(runtime.device))
            vectors.append(model.encode_latents(images).reshape(-1, model.quantizer.code_dim).clone())
    model.quantizer.start(gather_rows(torch.cat(vectors)), rng)


def _optimizers(settings: TrainVQVAE, model: VQVAE) -> dict[str, torch.optim.Optimizer]:
    """Return the optimisers by name; Muon has the kernels between hidden layers, at half of the learning rate."""
    rate = settings.learning_rate
    assert rate is not None
    inner = [p for p in model.parameters() if p.ndim > 2 and model.spec.channels not in p.shape[:2]]
    kernels = inner if settings.optimizer == "muon" else []
    decay, betas = settings.weight_decay, settings.adam_betas
    return adamw_and_muon(
        model.parameters(), kernels, learning_rate=rate, weight_decay=decay, betas=betas, share=MUON_SHARE
    )


def _restore(
    checkpoint: Checkpoint, model: VQVAE, optimizers: dict[str, torch.optim.Optimizer], average: WeightAverage
) -> None:
    where = f"checkpoint step {checkpoint.step}"
    try:
        model.load_state_dict(checkpoint.modules["vqvae"], strict=True)
        for name, optimizer in optimizers.items():
            load_optimizer_tensors(optimizer, model, checkpoint.optimizers[name], where)
        average.load(checkpoint.averages["vqvae"])
    except (KeyError, RuntimeError, AssertionError) as error:
        raise ArtifactError(
            f"{where} does not fit this run ({str(error)[:80]}); pass --overwrite to start anew"
        ) from error


def _loop(
    settings: TrainVQVAE,
    runtime: Runtime,
    model: VQVAE,
    train: PixelRows,
    validation: PixelRows,
    checkpoint: Checkpoint | None,
    folder: Path,
) -> WeightAverage:
    """Run the optimiser steps that are left and return the averaged weights; the last step is checkpointed.

    A step is a function of (seed, step) and the state a checkpoint holds; what is logged never feeds back.
    """
    s, B, device = settings, settings.batch_size, runtime.device
    assert B is not None
    assert s.steps is not None
    assert s.learning_rate is not None
    wrapped = trained_module(s, runtime, model)
    optimizers = _optimizers(s, model)
    if checkpoint is None:
        first = 0
        _start_codebook(model, train, s, runtime)
        average = WeightAverage(model, decay=s.average_decay, copied=("quantizer.",))
    else:
        first = checkpoint.step
        average = WeightAverage(model, decay=s.average_decay, copied=("quantizer.",))
        _restore(checkpoint, model, optimizers, average)
    log = RunLog(folder, step=first, steps=s.steps, is_main=runtime.is_main, report_to=s.report_to)
    if first:
        log.say(f"continuing from step {first}")
    window = Window(runtime, tuple(level.num_codes for level in model.spec.levels))
    num_revived, window_start, measured_steps = 0.0, time.monotonic(), 0
    if checkpoint is not None:
        window.load(checkpoint.state.get("window"))
        num_revived = float(checkpoint.state.get("num_revived", 0.0))

    def save(step: int) -> None:
        require_same_everywhere(model.quantizer.state_dict(), "the codebook")
        logged = {"window": window.state(), "num_revived": num_revived}
        if runtime.is_main:
            state = Checkpoint(
                step,
                state=logged,
                modules={"vqvae": full_state(model)},
                optimizers={name: optimizer_tensors(each, model) for name, each in optimizers.items()},
                averages={"vqvae": average.tensors},
            )
            save_checkpoint(folder / "checkpoints", state)
            log.show(step, "reconstructions", _pictures(model, average, validation, device))
        runtime.barrier()

    with signal_control() as control:
        ahead = None
        for step in range(first, s.steps):
            learning_rate = lr_at(
                step,
                steps=s.steps,
                peak=s.learning_rate,
                warmup_steps=s.warmup_steps,
                decay_fraction=s.decay_fraction,
                schedule=s.schedule,
            )
            for optimizer in optimizers.values():
                set_learning_rate(optimizer, learning_rate)
                optimizer.zero_grad(set_to_none=True)
            pixels = _pixels(s, runtime, train, step) if ahead is None else ahead
            images = to_unit_range(torch.from_numpy(pixels).to(device))
            numbers = _passes(s, runtime, model, wrapped, images, step, window)
            norm = nn.utils.clip_grad_norm_(model.parameters(), s.max_gradient_norm)
            rows, done = batch_rows(len(train), B, s.seed, step), step + 1
            if device.type == "cuda":  # which computes: what comes next waits for it
                ahead = _pixels(s, runtime, train, done)
            require_finite(folder, step, rows, numbers.pop("loss"), norm, main=runtime.is_main)
            window.add(numbers)
            for optimizer in optimizers.values():
                optimizer.step()
            num_revived += model.quantizer.update(keyed_generator(s.seed, step, "quantizer")).get("num_revived", 0.0)
            average.update(model, done)

            window.steps, measured_steps = window.steps + 1, measured_steps + 1
            log.advance()
            if done % s.log_every == 0 or done == s.steps:
                seconds, num_images = time.monotonic() - window_start, window.steps * B
                values = window.read()
                uses = window.counts.read(reset=True)
                values |= named_use(uses)
                values |= {"num_revived": num_revived}
                values |= {"learning_rate": learning_rate, "images_per_second": measured_steps * B / seconds}
                log.write(done, values)
                watch(uses, model.spec.levels, num_images, done, s, log)
                num_revived, window_start, measured_steps = 0.0, time.monotonic(), 0
            asked = control.agreed()
            if done % s.checkpoint_every == 0 or done == s.steps or asked.save:
                save(done)
            if asked.save and not asked.stop:
                log.say(f"state saved after step {done}, as SIGUSR2 asks")
            if asked.stop and done < s.steps:
                log.close()
                raise Stopped(f"stopped after step {done}, state saved; run the same command to continue")
    log.close()
    return average


def _pixels(s: TrainVQVAE, runtime: Runtime, train: PixelRows, step: int) -> NDArray[np.uint8]:
    """Return this process's share of the pictures of a step, [share, height, width, C] uint8."""
    assert s.batch_size is not None
    share = runtime.share(s.batch_size)
    pixels = train.batch(batch_rows(len(train), s.batch_size, s.seed, step)[share])
    if s.augment:
        rng, half = keyed_generator(s.seed, step, "augmentation"), min(factors_of(s.model.downsampling or 2, 2)) // 2
        pixels = shifted_and_mirrored(pixels, rng, most=half, rows=share)
    return pixels


def _passes(
    s: TrainVQVAE, runtime: Runtime, model: VQVAE, wrapped: nn.Module, images: Tensor, step: int, window: Window
) -> dict[str, Tensor]:
    """Do the forward and backward passes of one step; every parameter's gradient is that of the batch.

    Returns:
        The unweighted terms of the batch's loss, and `loss`, the weighted sum; the same on every process.
    """
    assert s.batch_size is not None
    sums, first = StepSums(runtime, wrapped), runtime.share(s.batch_size).start
    pieces = runtime.pieces(s.batch_size, s.gradient_accumulation_steps)
    for piece in pieces:
        noise = partial(_row_noise, s.seed, step, piece.start)
        model.quantizer.begin_step(progress=step / (s.steps or 1), noise=noise, sums=runtime.sum_over_piece)
        part = (piece.stop - piece.start) / s.batch_size
        with sums.piece(last=piece is pieces[-1]):
            terms, codes = _forward(wrapped, images[piece.start - first : piece.stop - first], s, runtime)
            loss = weighted_sum(terms, s.loss) * part
            sums.backward(loss, {name: term * part for name, term in terms.items()} | {"loss": loss})
        window.counts.add(codes)
    return sums.finish()


def _row_noise(seed: int, step: int, first: int, row: int) -> np.random.Generator:
    """Return the generator of row `row` of a piece that begins at row `first` of the global batch."""
    return keyed_generator(seed, step, f"quantizer noise {first + row}")


def _pictures(model: VQVAE, average: WeightAverage, validation: PixelRows, device: torch.device) -> Image.Image:
    originals = validation.batch(range(min(NUM_PICTURES, len(validation))))
    with average.swapped_into(model):
        return comparison_grid(originals, reconstruct_pixels(model, originals, device=device))


def _finish(
    settings: TrainVQVAE,
    runtime: Runtime,
    model: VQVAE,
    average: WeightAverage,
    validation: PixelRows,
    final: Path,
    record: TrainingRecord,
) -> None:
    """Measure the averaged weights on the held-out images and write them as RUN/vqvae (main process)."""
    if not runtime.is_main:
        return
    model.eval()
    raw = evaluate_codec(model, validation, device=runtime.device)
    model.load_state_dict(average.tensors)
    result = evaluate_codec(model, validation, device=runtime.device)
    with new_folder(final) as staging:
        save_codec(model, staging)
        write_record(staging, replace(record, measured=result))
    print(f"{summary(result)} (without averaging the weights: mse {raw['mse']:.5f})")
    if (usage := min(level["usage"] for level in result["levels"])) < COLLAPSED:
        print(f"warning: only {usage:.1%} of the codes are used on the held-out images; {remedy(settings)}")
    print(f"wrote {final} (codec {model.codec_id[:12]}) and {final.parent / 'vqvae-training' / 'images'}")
    codes = final.parent / "codes"
    print(f"next: vq-prior extract-codes --codec {final} --data {settings.data} --out {codes}", flush=True)
