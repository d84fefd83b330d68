"""A codec's two halves as plain modules of tensors, for programs that trace them: no calls of fixed size, no checks."""

from typing import Any

import torch
from torch import Tensor, nn

from stage1_vqvae.blocks import crop_to, pad_to
from stage1_vqvae.quantizers.codebook import CodebookQuantizer
from vq_prior.core.errors import UsageError

HAIR = 1e-4  # of latents and of squared distances, as a share of their size and one more


class Encoder(nn.Module):
    """Values [B, C, *shape] -> the codes of each level [B, *grid] int64."""

    def __init__(self, encoder: nn.Module, quantizer: nn.Module, padded: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder, self.quantizer, self._padded = encoder, quantizer, padded

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return the codes."""
        codes: tuple[Tensor, ...] = self.quantizer.encode(  # type: ignore[operator]
            self.encoder(pad_to(values, self._padded)).movedim(1, -1)
        )
        return codes


class Decoder(nn.Module):
    """The codes of each level [B, *grid] int64 -> values [B, C, *shape] within their bounds."""

    def __init__(
        self, decoder: nn.Module, quantizer: nn.Module, shape: tuple[int, ...], bounds: tuple[float, float] | None
    ) -> None:
        super().__init__()
        self.decoder, self.quantizer, self._shape, self._bounds = decoder, quantizer, shape, bounds

    def forward(self, *codes: Tensor) -> Tensor:
        """Return the values."""
        vectors: Tensor = self.quantizer.embed(codes)  # type: ignore[operator]
        values = crop_to(self.decoder(vectors.movedim(-1, 1)), self._shape)
        return values if self._bounds is None else values.clamp(*self._bounds)


class Halved:
    """What a codec of ours gives to exporters."""

    def halves(self: Any) -> tuple[nn.Module, nn.Module | None]:
        """Return encoder with quantiser, and decoder, in eval mode; None where it cannot decode.

        Raises:
            UsageError: If it has several code grids, whose encoder and quantisers take turns.
        """
        if self.architecture.grids > 1:
            raise UsageError(f"a codec of {self.architecture.grids} code grids cannot be exported; one of one grid can")
        encoder = Encoder(self.encoder, self.quantizer, self.padded)
        return encoder.eval(), Decoder(self.decoder, self.quantizer, self.architecture.shape, self.bounds).eval()

    @torch.no_grad()
    def ties(self: Any, values: Tensor, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> Tensor:
        """Return the cells, [B, *grid] bool, whose other codes are ties with ours: as near, or a hair's breadth away.

        Args:
            values: What both encoded, [B, C, *shape].
            ours: Codes of each level that this codec gave.
            theirs: The other codes.
        """
        latents, quantizer = self.encode_latents(values), self.quantizer
        first, second = quantizer.embed(ours), quantizer.embed(theirs)
        step = HAIR * (1 + latents.abs().amax(-1, keepdim=True))
        stepped = quantizer.encode(latents + step * torch.sign(second - first))
        ties = torch.stack([a == b for a, b in zip(stepped, theirs, strict=True)]).all(0)
        if isinstance(quantizer, CodebookQuantizer):
            placed = quantizer.place(latents)
            near, far = ((placed - vectors).square().sum(-1) for vectors in (first, second))
            ties = ties | ((far - near).abs() <= HAIR * (1 + near))
        return ties


class TracedEncoder(nn.Module):
    """`codes_of` of a module that holds all its weights, as a module."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return the codes of the one level."""
        return (self.whole.codes_of(values),)


class TracedDecoder(nn.Module):
    """`images_of` of a module that holds all its weights, as a module."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, *codes: Tensor) -> Tensor:
        """Return the values of the codes of the one level."""
        values: Tensor = self.whole.images_of(*codes)
        return values
