"""A convolution together with what follows it, for as long as the weights do not change: the same bits in less time.

oneDNN adds the bias, another tensor and a ReLU while a result is still in the cache, and takes weights that were laid
out ahead. PyTorch has no public name for that: it is what its own compiler calls. So it is tried once against the
plain layers, in calls as they will be, and used where every bit agrees; elsewhere nothing changes.

Plain twin: `SonnetEncoder.forward` of blocks.py, layer by layer.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stage1_vqvae.blocks import SonnetEncoder
from vq_prior.core.processes.fixed_calls import rows_per_call
from vq_prior.core.spec import Codec, CodeSpec, Latent

VERDICTS: dict[tuple[Any, ...], bool] = {}  # shapes and threads -> whether every bit agreed


@contextmanager
def joined_layers(codec: Codec) -> Iterator[bool]:
    """Let a codec encode faster while this is open; its weights must not change meanwhile.

    Args:
        codec: Any; only one of the network `sonnet` for images, on a CPU, becomes faster.

    Yields:
        Whether it did.
    """
    encoder = getattr(codec, "encoder", None)
    latent = codec.latent
    if latent is None or not (isinstance(encoder, SonnetEncoder) and _agrees(codec.spec, latent, encoder)):
        yield False
        return
    encoder.joined = JoinedSonnetEncoder(encoder)
    try:
        yield True
    finally:
        encoder.joined = None


def _agrees(spec: CodeSpec, codec: Latent, encoder: SonnetEncoder) -> bool:
    """Return whether latents keep their bits, with one thread and with as many as there are; tried once a process."""
    device = encoder.out.weight.device
    if device.type != "cpu" or not isinstance(encoder.out, nn.Conv2d) or not torch.backends.mkldnn.is_available():
        return False
    threads = torch.get_num_threads()
    tried = (threads, spec.shape, *(parameter.shape for parameter in encoder.parameters()))
    if tried not in VERDICTS:
        try:
            VERDICTS[tried] = all(_agrees_with(spec, codec, encoder, count) for count in {1, threads})
        except (AttributeError, RuntimeError, TypeError):  # a PyTorch that has not these operations, or others
            VERDICTS[tried] = False
        finally:
            torch.set_num_threads(threads)
    return VERDICTS[tried]


def _agrees_with(spec: CodeSpec, codec: Latent, encoder: SonnetEncoder, threads: int) -> bool:
    rows = rows_per_call(torch.device("cpu"), math.prod(spec.shape))
    images = torch.rand((rows, spec.channels, *spec.shape), generator=torch.Generator().manual_seed(0))
    images = images * 2 - 1
    torch.set_num_threads(threads)
    plain = codec.encode_latents(images)
    encoder.joined = JoinedSonnetEncoder(encoder)
    try:
        return torch.equal(codec.encode_latents(images), plain)
    finally:
        encoder.joined = None


class JoinedSonnetEncoder:
    """What `SonnetEncoder.forward` computes, [B, C, height, width] -> [B, D, *grid], float32.

    Args:
        encoder: Its weights are laid out in the first call, and not looked at again.
    """

    def __init__(self, encoder: SonnetEncoder) -> None:
        self._encoder = encoder
        self._laid_out: dict[nn.Module, tuple[Any, ...]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Return latents."""
        encoder, x = self._encoder, images
        for layer in (*encoder.down, encoder.mix):
            x = self._convolved(x, layer, "relu")
        last = len(encoder.stack.conv_in) - 1
        for number, (conv_in, conv_out) in enumerate(zip(encoder.stack.conv_in, encoder.stack.conv_out, strict=True)):
            hidden = self._convolved(x.relu() if number else x, conv_in, "relu")  # the first has been through one
            x = self._added(hidden, conv_out, x, "relu" if number == last else None)
        return self._convolved(x, encoder.out, "none")

    def _convolved(self, x: Tensor, layer: nn.Module, then: str) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, *self._parts(layer, x), 1, then, [], "")

    def _added(self, x: Tensor, layer: nn.Module, other: Tensor, then: str | None) -> Tensor:
        binary = torch.ops.mkldnn._convolution_pointwise.binary
        return binary(x, other, *self._parts(layer, x), 1, "add", 1.0, then, [], None)

    def _parts(self, layer: Any, x: Tensor) -> tuple[Any, ...]:
        """Return weight, bias, padding, stride and dilation."""
        if layer not in self._laid_out:
            geometry = (list(layer.padding), list(layer.stride), list(layer.dilation))
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            weight = reorder(layer.weight.detach(), *geometry, 1, list(x.shape))
            self._laid_out[layer] = (weight, layer.bias.detach(), *geometry)
        return self._laid_out[layer]
