"""Calls of one fixed row count, so that a row's bits never depend on its neighbours.

Matrix products of another shape may round differently. Every network call that
must not depend on the batch size goes through here: the batch is cut into pieces
of one size and the last is padded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def rows_per_call(device: torch.device, pixels: int) -> int:
    """Return the row count of one encoder or decoder call: a function of the kind of device and the image size alone.

    A power of two, at most 64 on a CPU and 128 elsewhere; rows times pixels stay within 2^16 and 2^22.
    On two cores, calls of 2^15 to 2^16 pixels were the fastest at 28, 32 and 64 pixels a side.

    Args:
        device: Where the call runs.
        pixels: Of one image, over all its spatial axes.
    """
    most, at_once = (64, 1 << 16) if device.type == "cpu" else (128, 1 << 22)
    return min(most, 1 << max(0, (at_once // pixels).bit_length() - 1))


def map_rows(function: Callable[..., Any], rows: int, *inputs: Tensor) -> Any:
    """Return `function(*inputs)`, computed in calls of exactly `rows` rows.

    Args:
        function: Takes tensors `[rows, ...]`; returns one, or a tuple of them, `[rows, ...]`. Its rows are independent.
        rows: Row count of each call.
        inputs: Tensors `[B, ...]` with the same B >= 1.

    Returns:
        What `function` returns, with B rows.
    """
    total = inputs[0].shape[0]
    pieces: list[Any] = []
    for first in range(0, total, rows):
        piece = [tensor[first : first + rows] for tensor in inputs]
        missing = rows - piece[0].shape[0]
        if missing:
            piece = [torch.cat([t, t.new_zeros((missing, *t.shape[1:]))]) for t in piece]
        output = function(*piece)
        keep = rows - missing
        pieces.append(output[:keep] if isinstance(output, Tensor) else tuple(part[:keep] for part in output))
    if isinstance(pieces[0], Tensor):
        return torch.cat(pieces)
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


@contextmanager
def whole_float32(device: torch.device) -> Iterator[None]:
    """Make float32 convolutions on a GPU compute in float32 for a block; cuDNN's default is TF32, of 11 bits."""
    if device.type != "cuda":
        yield
        return
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    former, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = former


def map_rows_frozen(module: nn.Module, function: Callable[..., Any], rows: int, *inputs: Tensor) -> Any:
    """Return `function(*inputs)` in calls of `rows` rows, with `module` in eval mode and no autocast around."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        device = inputs[0].device
        with torch.autocast(device.type, enabled=False), whole_float32(device):
            return map_rows(function, rows, *inputs)
    finally:
        for part in training:
            part.training = True
