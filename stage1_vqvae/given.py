"""What a codec is given, checked before it computes: nothing is converted, rounded or cut in silence."""

from collections.abc import Sequence

from torch import Tensor, float32, nn

from vq_prior.core.errors import UsageError, VQPriorError
from vq_prior.core.spec import Codec, check_codes, check_images


def require_images(codec: Codec, weights: nn.Module, images: Tensor) -> None:
    """Raise `UsageError` unless a codec can encode these images as exactly as its codes need.

    Args:
        codec: What is to encode them.
        weights: What it computes with.
        images: [B, C, *shape], floating-point numbers within the bounds of their kind, or at most 1% beyond.
    """
    _require_float32(weights)
    try:
        values = codec.modality.values
    except VQPriorError:  # of no kind that has a name
        check_images(codec.spec, images, (-1.0, 1.0))
        return
    check_images(codec.spec, images, values.bounds, getattr(values, "conversion", ""))


def require_codes(codec: Codec, weights: nn.Module, codes: Sequence[Tensor | None]) -> None:
    """Raise `UsageError` unless a codec can decode these codes, a tensor of integers [B, *grid] a level.

    Of a codec that can leave levels out, the first levels alone will do, and None stands for one that is left out.
    """
    _require_float32(weights)
    check_codes(codec.spec, codes, separable=codec.separable)


def _require_float32(weights: nn.Module) -> None:
    dtype = next(weights.parameters()).dtype
    if dtype != float32:
        raise UsageError(f"a codec encodes and decodes in float32, and this one is {str(dtype)[6:]}; load it anew")
