"""The networks of a codec as training uses them: on a GPU, as CUDA graphs.

A GPU computes a step on small pictures in less time than Python takes to launch its kernels. So encoder and decoder
are captured once, forward and backward, and replayed; the quantiser between them and all that follows stay as written.

Plain twin: the networks as written, which every other training uses.
"""

import torch
from torch import nn

from stage1_vqvae.blocks import ordered
from stage1_vqvae.fast.convolutions import sum_in_parts
from stage1_vqvae.model import VQVAE
from stage1_vqvae.settings import TrainVQVAE
from vq_prior.core.processes.runtime import Runtime


def trained_module(settings: TrainVQVAE, runtime: Runtime, model: VQVAE) -> nn.Module:
    """Return the model as the training passes use it, on its device, in training mode."""
    model.coarse_rows = slice(0, None, 2) if settings.loss.coarse_weight > 0 else None
    sum_in_parts(model)
    wrapped = runtime.wrap(model).train()
    one_pass = runtime.num_processes == 1 and not runtime.reproducible and settings.gradient_accumulation_steps == 1
    if runtime.device.type == "cuda" and one_pass and model.architecture.grids == 1:
        assert settings.batch_size is not None
        _capture_networks(model, runtime, settings.batch_size)
    return wrapped


def _capture_networks(model: VQVAE, runtime: Runtime, num_images: int) -> None:
    """Make both networks replay what they do in training; in eval mode they compute as before.

    The gradients of their weights are then the same memory in every step, overwritten by its one backward pass.
    """
    spec, grid = model.spec, model.grid
    images = torch.zeros(num_images, spec.channels, *spec.shape, device=model.device)
    vectors = torch.zeros(num_images, model.quantizer.code_dim, *grid, device=model.device)
    with torch.autocast("cuda", torch.bfloat16, enabled=runtime.precision == "bf16", cache_enabled=False):
        inputs = (model.prepared(images),), (ordered(vectors).requires_grad_(),)
        torch.cuda.make_graphed_callables((model.encoder, model.decoder), inputs)
