"""Gradients of weights that, in bfloat16, do not depend on how a batch is cut into pieces, nor on threads.

Autocast gives a weight's gradient in bfloat16: a batch of 64 is rounded once, two of 32 are rounded twice, and after 20
steps codebooks of the two differ by 6e-3; threads that share a sum make up 2e-3 of it. Here, on a CPU, gradients are
computed for 16 rows at a time, whatever the batch, and summed in float32 in the order of a tree: pieces and processes
of 16 rows, times a power of two, give the bits of one batch. The linear layers of attention are left as autocast has
them, and so is float32, where this would cost a quarter of the step. Letters: B batch, C channels, n parts of 16 rows.

Plain twin: the layers of `torch.nn`, of which a model is made; a training turns them into these (`sum_in_parts`).
"""

from typing import Any

import torch
from torch import Tensor, nn

from vq_prior.core.processes.ordered_sums import tree_sum

LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
ROWS = 16  # few enough to divide most batches, enough to keep the cores busy
AT_ONCE = 8 * ROWS  # each part has a gradient of the weight's size
convolution_backward = torch.ops.aten.convolution_backward


def in_bfloat16(kind: str) -> bool:
    """Return whether autocast computes in bfloat16 on this kind of device."""
    return torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.bfloat16


class _ConvolutionInParts(torch.autograd.Function):
    """A convolution of bfloat16 numbers, with gradients of weight and bias in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, geometry: Any) -> Tensor:
        """Return the convolution; `geometry` is stride, padding, dilation, transposed, output padding, groups."""
        x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return torch.ops.aten.convolution(x, weight, bias.to(torch.bfloat16), *geometry)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """Return the gradients of input, weight and bias."""
        x, weight = ctx.saved_tensors
        of_input, of_weight, of_bias = None, None, None
        if ctx.needs_input_grad[0]:
            of_input = convolution_backward(gradient, x, weight, None, *ctx.geometry, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            several = zip(gradient.split(AT_ONCE), x.split(AT_ONCE), strict=True)
            of_weight = tree_sum(torch.stack([tree_sum(_of_weight(*rows, weight, ctx.geometry)) for rows in several]))
            places = [0, *range(2, gradient.dim())]
            of_bias = tree_sum(torch.stack([rows.sum(places, dtype=torch.float32) for rows in gradient.split(ROWS)]))
        return of_input, of_weight, of_bias, None


def _of_weight(gradient: Tensor, x: Tensor, weight: Tensor, geometry: Any) -> Tensor:
    """Return the weight's gradient of each 16 rows, and that of the rows left over, [n or n + 1, *its shape] float32.

    One convolution does it, whose groups of channels are the parts: its threads share groups, where those of a single
    part would share its rows and round in another way than one thread. So no part goes alone.
    """
    n = len(x) // ROWS
    parts = []
    if n:
        groups = max(2, n)
        whole = (tensor[: n * ROWS] for tensor in (gradient, x))
        sides = [_side_by_side(rows if n > 1 else torch.cat([rows, rows]), groups) for rows in whole]
        weights = weight.new_empty((groups * len(weight), *weight.shape[1:]))  # its gradient does not depend on it
        gradients = convolution_backward(*sides, weights, None, *geometry[:-1], groups, [False, True, False])[1]
        parts.append(gradients.unflatten(0, (groups, -1))[:n].float())
    if len(x) > n * ROWS:
        rest = (gradient[n * ROWS :], x[n * ROWS :])
        parts.append(convolution_backward(*rest, weight, None, *geometry, [False, True, False])[1][None].float())
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _side_by_side(x: Tensor, n: int) -> Tensor:
    """Return [B, C, *shape] as [16, n * C, *shape], channels innermost; B is n * 16."""
    rows = x.movedim(1, -1).unflatten(0, (n, ROWS))  # [n, 16, *shape, C]
    return rows.movedim(0, -2).flatten(-2).movedim(-1, 1)


class _NormInParts(torch.autograd.Function):
    """A group normalisation, the gradients of its scale and shift summed in the same way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
        """Return the normalised x, [B, C, *shape]."""
        B, C = x.shape[:2]
        ctx.num_groups, ctx.order = num_groups, torch.contiguous_format
        if (last := LAST.get(x.dim() - 2)) is not None and x.is_contiguous(memory_format=last):
            ctx.order = last
        x = x.contiguous(memory_format=ctx.order)
        y, mean, scale = torch.native_group_norm(x, weight, bias, B, C, x[0, 0].numel(), num_groups, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """Return the gradients of x, weight and bias."""
        x, weight, mean, scale = ctx.saved_tensors
        C, places = x.shape[1], x[0, 0].numel()
        rows = (gradient.contiguous(memory_format=ctx.order), x, mean, scale)
        backward = torch.ops.aten.native_group_norm_backward  # it crashes if it is not asked for all three
        parts = [
            backward(*part, weight, len(part[0]), C, places, ctx.num_groups, [True, True, True])
            for part in zip(*(tensor.split(ROWS) for tensor in rows), strict=True)
        ]
        of_input, of_weight, of_bias = zip(*parts, strict=True)
        return torch.cat(of_input), tree_sum(torch.stack(of_weight)), tree_sum(torch.stack(of_bias)), None, None


class _Convolution(nn.Module):
    """What convolutions and transposed ones of any rank do in training; they have a bias and are padded by zeros."""

    def forward(self, input: Any, *rest: Any) -> Any:
        """Return the convolution of `input` [B, C, *shape]."""
        layer: Any = self
        kind = input.device.type
        if kind == "cuda" and in_bfloat16(kind) and min(layer.weight.shape[:2]) % 8 and len(layer.stride) in LAST:
            # cuDNN takes 36 ms in place of 2 for the gradient of 3 channels' weights where these stand apart.
            input = input.contiguous(memory_format=LAST[len(layer.stride)])
        if rest or kind != "cpu" or not in_bfloat16(kind) or not torch.is_grad_enabled():
            return super().forward(input, *rest)
        geometry = (layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding, layer.groups)
        return _ConvolutionInParts.apply(input, layer.weight, layer.bias, geometry)


class _GroupNorm(nn.GroupNorm):
    """What a group normalisation does in training."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised `input` [B, C, *shape]."""
        kind = input.device.type
        if kind != "cpu" or not in_bfloat16(kind) or not torch.is_grad_enabled():
            return super().forward(input)
        return _NormInParts.apply(input, self.weight, self.bias, self.num_groups, self.eps)


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
IN_TRAINING: dict[type[nn.Module], type[nn.Module]] = {
    nn.GroupNorm: _GroupNorm,
    **{plain: type(plain.__name__, (_Convolution, plain), {}) for plain in CONVOLUTIONS},
}


def sum_in_parts(model: nn.Module) -> None:
    """Let the layers of a model compute the gradients of their weights as said above, from now on.

    Nothing else changes: neither what they compute, nor their weights, nor what is saved.
    """
    for layer in model.modules():
        layer.__class__ = IN_TRAINING.get(type(layer), type(layer))
