"""Convolutions whose weights' gradients do not depend on how a batch is cut into pieces, in bfloat16 too.

Autocast gives a weight's gradient in bfloat16: a batch of 64 is rounded once, two of 32 are rounded twice, and after 20
steps codebooks of the two differ by 6e-3. Here, on a CPU, gradients are computed for 16 rows at a time, whatever the
batch, and summed in float32, so that pieces and processes of 16 rows or a multiple give those of one batch, to the
rounding of that sum. The linear layers of attention are left as autocast has them.
"""

from typing import Any

import torch
from torch import Tensor, nn

LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
ROWS = 16  # few enough to divide most batches, enough to keep the cores busy


class _InBfloat16(torch.autograd.Function):
    """A convolution of bfloat16 numbers, with gradients of weight and bias in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, geometry: tuple[Any, ...]) -> Tensor:
        """Return the convolution; `geometry` is stride, padding, dilation, transposed, output padding, groups."""
        x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return torch.ops.aten.convolution(x, weight, bias.to(torch.bfloat16), *geometry)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        """Return the gradients of input, weight and bias."""
        x, weight = ctx.saved_tensors
        backward = torch.ops.aten.convolution_backward
        of_input, of_weight = None, torch.zeros_like(weight, dtype=torch.float32)
        if ctx.needs_input_grad[0]:
            of_input, _, _ = backward(gradient, x, weight, None, *ctx.geometry, [True, False, False])
        for part, rows in zip(gradient.split(ROWS), x.split(ROWS), strict=True):
            of_weight += backward(part, rows, weight, None, *ctx.geometry, [False, True, False])[1]
        of_bias = gradient.sum([0, *range(2, gradient.dim())], dtype=torch.float32)
        return of_input, of_weight, of_bias, None


class _Convolution(nn.Module):
    """What `Conv` and `ConvTranspose` of any rank have in common: bias, zero padding, one group."""

    def forward(self, input: Any, *rest: Any) -> Any:
        """Return the convolution of `input` [B, C, *shape]."""
        layer: Any = self
        kind = input.device.type
        bfloat16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.bfloat16
        if kind == "cuda" and bfloat16 and min(layer.weight.shape[:2]) % 8 and len(layer.stride) in LAST:
            # cuDNN takes 36 ms in place of 2 for the gradient of 3 channels' weights where these stand apart.
            input = input.contiguous(memory_format=LAST[len(layer.stride)])
        if rest or kind != "cpu" or not bfloat16 or not torch.is_grad_enabled():
            return super().forward(input, *rest)
        geometry = (layer.stride, layer.padding, layer.dilation, layer.transposed, layer.output_padding, layer.groups)
        return _InBfloat16.apply(input, layer.weight, layer.bias, geometry)


class Conv1d(_Convolution, nn.Conv1d):
    """`nn.Conv1d`, see above."""


class Conv2d(_Convolution, nn.Conv2d):
    """`nn.Conv2d`, see above."""


class Conv3d(_Convolution, nn.Conv3d):
    """`nn.Conv3d`, see above."""


class ConvTranspose1d(_Convolution, nn.ConvTranspose1d):
    """`nn.ConvTranspose1d`, see above."""


class ConvTranspose2d(_Convolution, nn.ConvTranspose2d):
    """`nn.ConvTranspose2d`, see above."""


class ConvTranspose3d(_Convolution, nn.ConvTranspose3d):
    """`nn.ConvTranspose3d`, see above."""
