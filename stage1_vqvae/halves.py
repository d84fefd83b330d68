"""A codec's two halves as plain modules of tensors, for programs that trace them: no calls of fixed size, no checks."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from stage1_vqvae.blocks import pad_to
from stage1_vqvae.quantizers.codebook import CodebookQuantizer

HAIR = 1e-4  # of latents and of squared distances, as a share of their size and one more


class Encoder(nn.Module):
    """Values [B, C, *shape] -> the codes of each level [B, *grid] int64: `codes_of` of a codec."""

    def __init__(self, codec: Any) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return the codes."""
        codes: tuple[Tensor, ...] = self.codec.codes_of(values)
        return codes


class Decoder(nn.Module):
    """The codes of each level [B, *grid] int64 -> values [B, C, *shape] within their bounds: `images_of` of a codec."""

    def __init__(self, codec: Any) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, *codes: Tensor) -> Tensor:
        """Return the values."""
        values: Tensor = self.codec.images_of(*codes)
        return values


class Halved:
    """What a codec of ours gives to exporters."""

    def halves(self: Any) -> tuple[nn.Module, nn.Module | None]:
        """Return encoder with quantiser, and decoder, in eval mode, each without the weights of the other."""
        encoding, decoding = deepcopy(self), deepcopy(self)
        encoding.decoder, decoding.encoder = nn.Identity(), nn.Identity()
        return Encoder(encoding).eval(), Decoder(decoding).eval()

    @torch.no_grad()
    def compared(self: Any, values: Tensor, theirs: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor]]:
        """Return of each grid which cells, [B, *grid] bool, have other codes than ours, and of which of them are ties.

        A tie is as near as ours, or a hair's breadth away. A finer grid is judged in the light of their coarser codes,
        as it was encoded.

        Args:
            values: What was encoded, [B, C, *shape].
            theirs: The codes of each level.
        """
        pairs: list[tuple[Tensor, Tensor]] = []
        left = list(theirs)

        def visit(_: int, quantizer: Any, latents: Tensor) -> Tensor:
            theirs = tuple(left.pop(0) for _ in quantizer.level_sizes)
            ours = quantizer.encode(latents)
            pairs.append((~_same(ours, theirs), _ties(quantizer, latents, ours, theirs)))
            vectors: Tensor = quantizer.embed(theirs)
            return vectors

        self.walk(pad_to(values, self.padded), visit)
        return pairs


def _same(first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> Tensor:
    """Return the cells whose codes of all levels are the same, [...] bool."""
    return torch.stack([a == b for a, b in zip(first, second, strict=True)]).all(0)


def _ties(quantizer: Any, latents: Tensor, ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> Tensor:
    """Return the cells, [...] bool, whose codes `theirs` are as near to latents [..., D] as `ours`, or nearly so."""
    first, second = quantizer.embed(ours), quantizer.embed(theirs)
    step = HAIR * (1 + latents.abs().amax(-1, keepdim=True))
    ties = _same(quantizer.encode(latents + step * torch.sign(second - first)), theirs)
    if isinstance(quantizer, CodebookQuantizer):
        placed = quantizer.place(latents)
        near, far = ((placed - vectors).square().sum(-1) for vectors in (first, second))
        ties = ties | ((far - near).abs() <= HAIR * (1 + near))
    return ties
