"""What a training of the codec will be, in words, before it begins."""

import json
import time

import torch

from stage1_vqvae.fast.graphs import trained_module
from stage1_vqvae.losses import coarse_terms, reconstruction_terms, weighted_sum, weights_for
from stage1_vqvae.model import VQVAE
from stage1_vqvae.settings import TrainVQVAE
from vq_prior.core.config import to_json
from vq_prior.core.processes.peak_memory import peak_memory_bytes
from vq_prior.core.processes.runtime import Runtime
from vq_prior.core.spec import by
from vq_prior.core.training.randomness import keyed_generator


def describe(settings: TrainVQVAE, model: VQVAE) -> str:
    """Return one line on what will be trained."""
    spec = model.spec
    grids = " + ".join(f"{by(level.grid, 'x')} grid of {level.num_codes} codes" for level in spec.levels)
    size = by(spec.shape, "x")
    return (
        f"codec: images {size}x{spec.channels} -> {grids} "
        f"({settings.quantizer.name}, {spec.num_tokens} tokens), {model.num_parameters():,} parameters; "
        f"{settings.steps} steps of {settings.batch_size} images"
    )


def dry_run_text(settings: TrainVQVAE, model: VQVAE, runtime: Runtime) -> str:
    """Return the resolved settings, memory and estimated time, from three real steps on random images."""
    assert settings.batch_size is not None
    assert settings.steps is not None
    module = trained_module(settings, runtime, model)
    weights = weights_for(settings.loss, quantizer=model.quantizer.loss_terms)
    share = runtime.share(settings.batch_size)
    images = torch.rand(share.stop - share.start, model.spec.channels, *model.spec.shape) * 2 - 1
    images = images.to(runtime.device)
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        with runtime.autocast():
            output = module(images)
        kind = settings.loss.reconstruction
        terms = reconstruction_terms(images, output.images, kind=kind) | output.loss
        terms |= coarse_terms(images, output.coarse, model.coarse_rows, kind=kind)
        weighted_sum(terms, weights).backward()
        model.quantizer.update(keyed_generator(0, 0, "dry run"))
        seconds.append(time.monotonic() - started)
    memory = torch.cuda.max_memory_allocated() if runtime.device.type == "cuda" else peak_memory_bytes()
    about = "unknown here" if memory is None else f"about {memory / 2**20:.0f} MiB a process"
    resolved = json.dumps(to_json(settings), indent=2)
    return (
        f"{resolved}\nmemory {about}, {min(seconds):.3f} s a step, "
        f"estimated time {min(seconds) * settings.steps / 60:.1f} minutes; nothing was written (--dry-run)"
    )
