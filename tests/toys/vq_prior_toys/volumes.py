"""A kind of data of three axes: volumes of some channels, with a file format of their own (`.vol`).

A file is b"VOL1", then depth, height, width and channels as little-endian 32-bit integers, then float32 numbers
[depth, height, width, channels]. All that curves do along one axis is done along three. Letters: B batch, n rows.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from vq_prior.core.errors import ArtifactError
from vq_prior.core.modality import Called, Encoded, Facts, Form, Header, Modality, Signs, Stored
from vq_prior_toys.curves import CurveFiles, CurveQuality, CurveShow, CurveValues

MAGIC = b"VOL1"


@dataclass(frozen=True)
class VolumeForm:
    """Volumes are cut, or continued by their last numbers, to a shape."""

    shape: tuple[int, int, int]
    channels: int

    def describe(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "channels": self.channels, "rule": "cut or hold; 1"}


class VolumeFiles(CurveFiles):
    """How volumes are read and written."""

    extension = ".vol"

    def inspect(self, encoded: Encoded, name: Called) -> Header:
        *shape, channels = self._array(encoded, name).shape
        return Header(tuple(shape), channels)

    def own_transform(self, header: Header) -> Form:
        return VolumeForm(header.shape, header.channels)  # type: ignore[arg-type]

    def read(self, encoded: Encoded, transform: Form, name: Called) -> Stored:
        volume = self._array(encoded, name)
        if volume.shape[-1] != transform.channels:
            raise ArtifactError(f"{name()} has {volume.shape[-1]} channels, not {transform.channels}; remove it")
        for axis, size in enumerate(transform.shape):
            volume = volume.take(np.arange(size).clip(max=volume.shape[axis] - 1), axis=axis)
        return volume

    def encode(self, stored: Stored) -> bytes:
        return MAGIC + struct.pack("<IIII", *stored.shape) + np.ascontiguousarray(stored, "<f4").tobytes()

    def _array(self, encoded: Encoded, name: Called) -> Stored:
        if isinstance(encoded, bytes):
            shape = struct.unpack("<IIII", encoded[4:20]) if len(encoded) >= 20 else (0,)
            if encoded[:4] != MAGIC or not prod(shape) or len(encoded) != 20 + 4 * prod(shape):
                raise ArtifactError(f"{name()} is no volume; remove or replace it")
            encoded = np.frombuffer(encoded, "<f4", offset=20).reshape(shape)
        if encoded.ndim != 4 or not encoded.size or not np.isfinite(encoded).all():
            raise ArtifactError(f"{name()} must be finite numbers [depth, height, width, channels]; remove it")
        return encoded.astype(np.float32)


class VolumeValues(CurveValues):
    """Volumes as numbers: float32 [depth, height, width, C] in memory."""

    def transform(
        self,
        settings: Any,  # noqa: ARG002
        facts: Facts | None,
        *,
        channels: int | None,
        device_type: str,  # noqa: ARG002
    ) -> Form:
        shape: Any = (facts.common_shape if facts else None) or (8, 8, 8)
        return VolumeForm(shape, channels or (facts.channels if facts else 1))

    def settings_of(self, transform: Form) -> Any:  # noqa: ARG002
        return None

    def from_description(self, description: Mapping[str, Any], where: str) -> Form:
        shape, channels = description.get("shape"), description.get("channels")
        if not (isinstance(shape, list) and len(shape) == 3 and type(channels) is int):
            raise ArtifactError(f"{where}: shape must be three integers and channels one, got {shape} and {channels}")
        return VolumeForm(tuple(shape), channels)  # type: ignore[arg-type]


class VolumeShow(CurveShow):
    """The middle slice of a volume, values from -2 to 2 as grey."""

    def pictures(self, values: Tensor) -> np.ndarray:
        middle = values.detach().cpu().float()[:, 0, values.shape[2] // 2]
        return ((middle.clamp(-2, 2) + 2) / 4 * 255).round().byte().numpy()[..., None]


VOLUMES = Modality(
    name="volumes",
    rank=3,
    signs=Signs((".vol",), "volume", holds="lists"),
    parts=lambda: (VolumeFiles(), VolumeValues(), CurveQuality(), VolumeShow()),
)
