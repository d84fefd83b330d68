"""What a call of the pipeline returns: samples, in the field for their kind of data."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal
from warnings import warn

import numpy as np
import torch
from torch import Tensor

from stage1_vqvae.modalities import MODALITIES
from stage1_vqvae.modalities.sheets import png_bytes, to_picture
from vq_prior.core.modality import Modality
from vq_prior.core.spec import Codec

OutputType = Literal["pil", "pt", "np"]
OUTPUT_TYPES = ("pil", "pt", "np")
MAX_SHOWN = 64
PLACES = ("images", "audios", "frames", "arrays")


@dataclass
class PipelineOutput:
    """What a call of the pipeline drew.

    Attributes:
        images: Of a model of pictures: a list of them (of Pillow's class); or a tensor [n, C, *shape] in [-1, 1]; or an
            array [n, *shape, C] uint8, or of a model of pictures of more bits the numbers of its source. None of any
            other model.
        labels: Class of each sample, [n]; None for an unconditional model or request.
        codes: Codes of each level, [n, *grid] int64.
        audios: Of a model of sound: [n, C, T], an array or a tensor.
        sampling_rate: Of the audios, in Hz.
        frames: Of a model of video: as images, with an axis of time.
        arrays: Of any other model: the samples by the name of their kind, each as they are stored, or a tensor.
        modality: What was drawn.
    """

    images: Any
    labels: list[int] | None
    codes: tuple[Tensor, ...]
    audios: Any = None
    sampling_rate: int | None = None
    frames: Any = None
    arrays: dict[str, Any] | None = None
    modality: Modality | None = field(default=None, repr=False)

    @property
    def drawn(self) -> Any:
        """What was drawn, from whichever field holds it."""
        if self.arrays is not None:
            return next(iter(self.arrays.values()))
        return next((part for part in (self.images, self.audios, self.frames) if part is not None), None)

    def _repr_png_(self) -> bytes | None:
        """Return the PNG by which a notebook shows the samples: a sheet of the first 64."""
        kind, shown = self.modality or MODALITIES["pictures"], self.drawn[:MAX_SHOWN]
        if isinstance(shown, list):
            shown = np.stack([np.atleast_3d(np.asarray(image)) for image in shown])
        values = shown if isinstance(shown, Tensor) else kind.values.to_values(torch.from_numpy(np.asarray(shown)))
        return png_bytes(kind.show.sheet(values))


def output_of(
    codec: Codec, values: Tensor, labels: list[int] | None, codes: tuple[Tensor, ...], output_type: OutputType
) -> PipelineOutput:
    """Return an output that has what was drawn in the field for its kind of data.

    Args:
        codec: That decoded it.
        values: What was drawn, [n, C, *shape].
        labels: Class of each.
        codes: Of each level.
        output_type: "pil", "pt" or "np".
    """
    kind = codec.modality
    drawn = _as(values, output_type, kind)
    if kind.show.output == "images":
        return PipelineOutput(drawn, labels, codes, modality=kind)
    rate = kind.show.sampling_rate and kind.show.sampling_rate(codec.transform)
    where: dict[str, Any] = {kind.show.output: {kind.name: drawn} if kind.show.output == "arrays" else drawn}
    return PipelineOutput(None, labels, codes, sampling_rate=rate, modality=kind, **where)


def joined(batches: Sequence[PipelineOutput]) -> PipelineOutput:
    """Return batches as one output."""
    first = batches[0]

    def together(parts: list[Any]) -> Any:
        if parts[0] is None:
            return None
        if isinstance(parts[0], dict):
            return {name: together([part[name] for part in parts]) for name in parts[0]}
        if isinstance(parts[0], list):
            return list(chain.from_iterable(parts))
        return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)

    labels = None if first.labels is None else [label for batch in batches for label in batch.labels or ()]
    codes = tuple(map(torch.cat, zip(*(batch.codes for batch in batches), strict=True)))
    drawn = {name: together([getattr(batch, name) for batch in batches]) for name in PLACES}
    return replace(first, labels=labels, codes=codes, **drawn)


def _as(values: Tensor, output_type: OutputType, modality: Modality) -> Any:
    if output_type == "pt":
        return values
    stored = modality.values.to_stored(values)
    if output_type == "np" or modality.show.output != "images":
        return stored
    if stored.shape[-1] == 3 and stored.dtype != np.uint8:
        warn("Pillow has no colour of 16 bits; these pictures have 8, output_type 'np' gives all", stacklevel=2)
        stored = modality.show.pictures(values)
    return [to_picture(one) for one in stored]
