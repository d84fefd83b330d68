"""A kind of data of one axis: curves of some channels, with a file format of their own (`.toy`).

A file is b"TOY1", then length and channels as little-endian 32-bit integers, then float32 numbers [length, channels].
In tables a curve is a list of lists of numbers. Letters: B batch, C channels, T length, n rows.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stage1_vqvae.modalities.sheets import Sheets
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.modality import Called, Encoded, Facts, Form, Header, Measure, Modality, Signs, Stored

MAGIC, HEIGHT = b"TOY1", 32


@dataclass
class CurveSettings:
    """The flags of curves."""

    length: int | None = None
    """Numbers of a curve along time; left out: as most curves have."""


@dataclass(frozen=True)
class CurveForm:
    """Curves are cut, or continued by their last number, to a length."""

    length: int
    channels: int

    @property
    def shape(self) -> tuple[int]:
        return (self.length,)

    def describe(self) -> dict[str, Any]:
        return {"length": self.length, "channels": self.channels, "rule": "cut or hold; 1"}


class CurveFiles:
    """How curves are read and written."""

    extension = ".toy"

    def inspect(self, encoded: Encoded, name: Called) -> Header:
        curve = self._array(encoded, name)
        return Header((curve.shape[0],), curve.shape[1])

    def own_transform(self, header: Header) -> Form:
        return CurveForm(*header.shape, channels=header.channels)

    def read(self, encoded: Encoded, transform: Form, name: Called) -> Stored:
        curve = self._array(encoded, name)
        if curve.shape[1] != transform.channels:
            raise ArtifactError(f"{name()} has {curve.shape[1]} channels, not {transform.channels}; remove it")
        (length,) = transform.shape
        held = np.repeat(curve[-1:], max(0, length - len(curve)), axis=0)
        return np.concatenate([curve[:length], held])

    def encode(self, stored: Stored) -> bytes:
        return MAGIC + struct.pack("<II", *stored.shape) + np.ascontiguousarray(stored, "<f4").tobytes()

    def _array(self, encoded: Encoded, name: Called) -> Stored:
        if isinstance(encoded, bytes):
            length, channels = struct.unpack("<II", encoded[4:12]) if len(encoded) >= 12 else (0, 0)
            if encoded[:4] != MAGIC or not length * channels or len(encoded) != 12 + 4 * length * channels:
                raise ArtifactError(f"{name()} is no curve; remove or replace it")
            encoded = np.frombuffer(encoded, "<f4", offset=12).reshape(length, channels)
        if encoded.ndim != 2 or not encoded.size or not np.isfinite(encoded).all():
            raise ArtifactError(f"{name()} must be finite numbers [length, channels]; remove or replace it")
        return encoded.astype(np.float32)


class CurveValues:
    """Curves as numbers: float32 [T, C] in memory."""

    bounds = None
    views = {"none": 1}  # noqa: RUF012

    def transform(
        self,
        settings: CurveSettings,
        facts: Facts | None,
        *,
        channels: int | None,
        device_type: str,  # noqa: ARG002
    ) -> Form:
        if settings.length is not None and settings.length < 4:
            raise UsageError(f"--curves.length must be at least 4, got {settings.length}")
        if facts is None:
            return CurveForm(settings.length or 0, channels or 0)
        shape = facts.common_shape or (facts.short_side,)
        return CurveForm(settings.length or shape[0], channels or facts.channels)

    def settings_of(self, transform: Form) -> CurveSettings:
        return CurveSettings(*transform.shape)

    def from_description(self, description: Mapping[str, Any], where: str) -> Form:
        length, channels = (description.get(name) for name in ("length", "channels"))
        if not (type(length) is int and type(channels) is int and length > 0 and channels > 0):
            raise ArtifactError(f"{where}: length and channels must be positive integers, got {length} and {channels}")
        return CurveForm(length, channels)

    def stored_like(self, transform: Form) -> tuple[tuple[int, ...], np.dtype[Any]]:
        return (*transform.shape, transform.channels), np.dtype(np.float32)

    def to_values(self, stored: Tensor) -> Tensor:
        return stored.movedim(-1, 1).to(torch.float32).contiguous()

    def to_stored(self, values: Tensor) -> Stored:
        return values.detach().float().movedim(1, -1).contiguous().cpu().numpy()

    def read_views(self, read: Callable[[Form], Stored], transform: Form, views: str) -> Stored:
        assert views == "none"
        return read(transform)[None]

    def augment(self, stored: Stored, rng: np.random.Generator, *, most: int, rows: slice) -> Stored:
        """Return curves moved in time by up to `most` places, the ends held."""
        shifts = rng.integers(-most, most + 1, size=rows.stop)[rows]
        times = np.clip(np.arange(stored.shape[1]) + shifts[:, None], 0, stored.shape[1] - 1)
        return stored[np.arange(len(stored))[:, None], times]


def mse(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared error of each curve, [B]."""
    return (first - second).square().flatten(1).mean(1)


class CurveQuality:
    """How near curves come."""

    measures = {"mse": Measure(mse, "mean squared error of reconstructions", ".5f")}  # noqa: RUF012
    losses: Mapping[str, Any] = {}

    def of_set(
        self,
        pairs: Callable[[], Iterator[tuple[Tensor, Tensor]]],  # noqa: ARG002
        shape: tuple[int, ...],  # noqa: ARG002
        *,
        network: str,  # noqa: ARG002
    ) -> dict[str, float | None]:
        return {}


class CurveShow(Sheets):
    """Curves drawn as dark places on white, values from -2 to 2 upwards."""

    output = "arrays"
    sampling_rate = None

    def pictures(self, values: Tensor) -> np.ndarray:
        heights = ((2 - values.detach().cpu().float()) / 4 * (HEIGHT - 1)).round().long().clamp(0, HEIGHT - 1)
        drawn = torch.full((len(values), HEIGHT, values.shape[2]), 255, dtype=torch.uint8)
        return drawn.scatter(1, heights, 0)[..., None].numpy()

    def accept(self, given: Any, transform: Form, name: Called) -> Stored:
        if not isinstance(given, (bytes, np.ndarray)):
            raise UsageError(f"{name()} must be an array [length, channels] or a path, got {type(given).__name__}")
        return CurveFiles().read(given, transform, name)


def _holds_curves(dtype: str, shape: tuple[int, ...]) -> bool:
    return dtype.startswith("float") and len(shape) == 3


CURVES = Modality(
    name="curves",
    rank=1,
    signs=Signs((".toy",), "curve", holds="lists", arrays=_holds_curves, settings=CurveSettings),
    parts=lambda: (CurveFiles(), CurveValues(), CurveQuality(), CurveShow()),
)
