"""A kind of data, as all that is not about one kind sees it: pictures, and what installed packages add.

A codec carries its kind as `codec.modality`, and how its data are brought to one form as `codec.transform`. Nothing
else may know what a value is. A kind is four small parts: its files, its values, their quality, and how to show them.

A value is *encoded* in a source (the bytes of a file, or an array), *stored* once it was brought to the codec's form
(an array of any dtype, kept in memory in few bytes), and *values* where a network sees it: float32 [B, C, *shape].

Letters: B batch, C channels, V views. `shape` is the size of a value along its axes: (height, width), (length,).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median_low
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias

import tyro

from vq_prior.core.settings import Free, Unsaid, Within

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Encoded: TypeAlias = bytes | NDArray[Any]
    Stored: TypeAlias = NDArray[Any]
else:  # numpy takes longer to import than `vq-prior --help` may
    Encoded = Stored = Any

Called = Callable[[], str]  # gives what to call a row; called only where something is wrong with it
Output = Literal["images", "audios", "frames", "arrays"]


@dataclass(frozen=True)
class Header:
    """What is known of a row before it is decoded.

    Attributes:
        shape: Its size along each axis.
        channels: That it needs.
        several: Whether its file holds more rows than this one, the first.
    """

    shape: tuple[int, ...]
    channels: int
    several: bool = False


@dataclass(frozen=True)
class Facts:
    """What the defaults of a training depend on.

    Attributes:
        num_train: Training rows.
        common_shape: The shape that more than half of the rows have, else None.
        short_side: Median of the rows' shortest axes.
        channels: The most that a row needs.
        headers: Of all rows, for a kind that wants to know more.
    """

    num_train: int
    common_shape: tuple[int, ...] | None
    short_side: int
    channels: int
    headers: tuple[Header, ...] = field(repr=False, default=())


def facts_of(num_train: int, headers: Sequence[Header]) -> Facts:
    """Return what the headers of all rows, at least one, say together."""
    shapes = [header.shape for header in headers]
    counts: dict[tuple[int, ...], int] = {}
    for shape in shapes:
        counts[shape] = counts.get(shape, 0) + 1
    commonest = max(sorted(counts), key=counts.__getitem__)
    return Facts(
        num_train=num_train,
        common_shape=commonest if 2 * counts[commonest] > len(shapes) else None,
        short_side=median_low(min(shape) for shape in shapes),
        channels=max(header.channels for header in headers),
        headers=tuple(headers),
    )


class Form(Protocol):
    """The form that rows are brought to before a codec sees them; equal ones are equal objects."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of a value along each axis."""
        ...

    @property
    def channels(self) -> int:
        """C of a value."""
        ...

    def describe(self) -> dict[str, Any]:
        """Return the transform as JSON values, the rule's version included: they enter the codec's identity."""
        ...


@dataclass(frozen=True)
class Signs:
    """By what data of a kind is known, and the flags the kind brings; read before any command runs.

    Attributes:
        suffixes: Of its files, lower case, with the dot.
        column: Name of its column flag: "image" gives `--image-column`.
        columns: Names of columns that are tried first.
        holds: What such a column of a table holds: whole files, or lists of numbers.
        feature: Name of its type in the features of `datasets`, if it has one.
        arrays: Says of the name of a dtype and the shape [N, ...] of an array (-1 where rows differ) whether it is N
            rows of this kind; None: no array is.
        settings: Dataclass of its own flags, `--NAME.FIELD`; each field has a default. None: it has none.
        flat: Whether its flags stand beside all others, `--FIELD`, which only our own pictures may.
    """

    suffixes: tuple[str, ...]
    column: str
    columns: tuple[str, ...] = ()
    holds: Literal["files", "lists"] = "files"
    feature: str | None = None
    arrays: Callable[[str, tuple[int, ...]], bool] | None = None
    settings: type | None = None
    flat: bool = False


@dataclass(kw_only=True)
class KindSettings:
    """What every command that takes DATA says of its kind."""

    modality: Annotated[str | None, Unsaid()] = None
    """What the data is: pictures, or a kind that an installed package brings. Left out: found by looking at it."""
    frames: Annotated[Literal["all"] | None, Unsaid()] = None
    """Of files that hold several pictures (pages of a TIFF, GIF, WebP, APNG): all makes a row of each, and those of a
    file are held out together. Left out: the first of each; how many files hold more is said."""
    options: Annotated[tyro.conf.Suppress[tyro.conf.Fixed[dict[str, Any] | None]], Unsaid(flag=False)] = None
    """Flags of kinds that are not ours, as JSON values: {"series": {"length": 64}, "series_column": "x"}."""
    split: Annotated[str | None, Unsaid()] = None
    """Split of the data to take alone, such as test; some of it is held out. Left out: its train and validation
    splits."""
    labels_file: Annotated[str | None, Unsaid()] = None
    """Table (csv, tsv, jsonl or parquet) with a row for each image of a folder, such as labels.csv of id and label."""
    file_column: Annotated[str | None, Unsaid()] = None
    """With --labels-file: column of the images, as paths or names with or without suffix; left out: file_name."""
    classes: Annotated[str | None, Unsaid()] = None
    """Classes to take, by name, separated by commas; left out: all."""
    max_images: Annotated[int | None, Within(2, 10**9), Unsaid()] = None
    """Images of each split to take at most, spread over all of them; left out: all."""
    shard_cache_mib: Annotated[int | None, Within(1, 2**30), Free(), Unsaid()] = None
    """MiB of disk, in the folder for temporary files, for shards of a web server; left out: 10240."""


class Files(Protocol):
    """How rows are read and written."""

    extension: str | None
    """Of the file of one value, such as ".png"; None where many belong in one file, `samples.npz`."""

    def inspect(self, encoded: Encoded, name: Called) -> Header:
        """Return what a row's header says; raises `ArtifactError` that names the row if it is none of this kind."""
        ...

    def own_transform(self, header: Header) -> Form:
        """Return the transform that leaves a row with this header as it is, for `check-data`."""
        ...

    def read(self, encoded: Encoded, transform: Form, name: Called) -> Stored:
        """Return a row in the transform's form; raises `ArtifactError` that names the row if it is damaged."""
        ...

    def encode(self, stored: Stored) -> bytes:
        """Return the file of one stored value; the same value gives the same bytes, and `read` gives it back."""
        ...


class Values(Protocol):
    """What rows are as numbers."""

    bounds: tuple[float, float] | None
    """Least and largest number of a value, which the decoder's are cut to; None where there is none."""
    views: Mapping[str, int]
    """Ways to dump more than one view of a training row: name -> V; "none" is 1."""

    def transform(self, settings: Any, facts: Facts | None, *, channels: int | None, device_type: str) -> Form:
        """Return the form to train on.

        Args:
            settings: Of the class `Signs.settings`, as typed or as `settings_of` gave them; None without such a class.
            facts: Of the data; None where settings and channels leave nothing open.
            channels: As asked for by `--model.channels`, or None.
            device_type: "cpu", "cuda" or "mps": what a sensible size depends on.

        Raises:
            UsageError: Naming the flag that is out of range.
        """
        ...

    def settings_of(self, transform: Form) -> Any:
        """Return the settings from which `transform` makes this very transform without facts; None if the kind has no
        settings class.
        """
        ...

    def from_description(self, description: Mapping[str, Any], where: str) -> Form:
        """Return the transform that `describe` told of; raises `ArtifactError` naming an entry that is not so."""
        ...

    def stored_like(self, transform: Form) -> "tuple[tuple[int, ...], np.dtype[Any]]":
        """Return shape and dtype of a stored value."""
        ...

    def to_values(self, stored: "Tensor") -> "Tensor":
        """Return float32 [B, C, *shape] of stored values [B, ...], on their device."""
        ...

    def to_stored(self, values: "Tensor") -> Stored:
        """Return stored values [B, ...] of float32 [B, C, *shape]; numbers beyond the bounds are cut."""
        ...

    def read_views(self, read: Callable[[Form], Stored], transform: Form, views: str) -> Stored:
        """Return the views of a row, [V, ...], the row as it is first; `read` gives it in any form."""
        ...

    def augment(self, stored: Stored, rng: "np.random.Generator", *, most: int, rows: slice) -> Stored:
        """Return changed copies of training rows [n, ...], or the rows themselves where a kind has no such thing.

        Args:
            stored: This process's rows of the global batch.
            rng: Of the step; what happens to a row must not depend on the processes.
            most: Half of what one code covers along an axis: no row should move by more.
            rows: Which rows of the global batch these are.
        """
        ...


@dataclass(frozen=True)
class Measure:
    """One number that compares values with their reconstructions.

    Attributes:
        function: Takes two tensors [B, C, *shape], returns [B].
        title: In a card and a table: "PSNR of reconstructions (dB)".
        form: How to print it: ".2f".
        unit: After the number, or "".
    """

    function: "Callable[[Tensor, Tensor], Tensor]"
    title: str
    form: str = ".4f"
    unit: str = ""


class Quality(Protocol):
    """How near reconstructions come."""

    measures: Mapping[str, Measure]
    """In the order they are told; "mse" is always one of them."""
    losses: Mapping[str, "Callable[[], Callable[[Tensor, Tensor], Tensor]]"]
    """Makers of further training losses: each takes values and reconstructions [B, C, *shape] and gives a scalar."""
    statistics: Mapping[str, "Callable[[Tensor], Tensor]"]
    """Numbers of each value by itself, [B] from [B, C, *shape]: their means over data and samples are told beside each
    other. A kind may lack it."""

    def of_set(
        self, pairs: "Callable[[], Iterator[tuple[Tensor, Tensor]]]", shape: tuple[int, ...], *, network: str
    ) -> dict[str, float | None]:
        """Return the measures that need a whole set or a network; `pairs` gives batches of values and copies anew."""
        ...


class Show(Protocol):
    """How people see values. Whatever the kind, a sheet is one picture, of Pillow's class."""

    output: Output
    """Where `PipelineOutput` holds them."""
    sampling_rate: Callable[[Form], int] | None
    """Of audios, in Hz; None for all else."""

    def pictures(self, values: "Tensor") -> "NDArray[np.uint8]":
        """Return a picture of each value, [B, height, width, 1 or 3] uint8, from float32 [B, C, *shape]."""
        ...

    def sheet(self, values: "Tensor", *, columns: int | None = None) -> Any:
        """Return one picture of many values, `columns` in a row; None makes it about square."""
        ...

    def pairs(self, values: "Tensor", copies: "Tensor", *, columns: int = 8) -> Any:
        """Return one picture in which every row of values stands above the row of their reconstructions."""
        ...

    def beside(self, first: Stored, second: Stored) -> Stored | None:
        """Return two stored values as one that shows both, or None where a file cannot."""
        ...

    def heat(self, values: "Tensor", nats: "Sequence[Tensor]", chance: Sequence[float]) -> "NDArray[np.uint8]":
        """Return each value beside its maps of -log p, [B, height, width, 3] uint8.

        Args:
            values: [B, C, *shape].
            nats: Of each level, [B, *grid].
            chance: Of each level, the nats of a cell if all its codes were alike: white; 0 is blue, twice it is red.
        """
        ...

    def accept(self, given: Any, transform: Form, name: Called) -> Stored:
        """Return what a Python caller gave (a file's bytes, an array, an object of a library) in the transform's form.

        Raises:
            UsageError: If it is nothing that this kind takes.
            ArtifactError: If a file is damaged.
        """
        ...


@dataclass(frozen=True)
class Modality:
    """A kind of data.

    Attributes:
        name: "pictures"; of letters, digits and _, for it names flags and an entry of `preprocessor_config.json`.
        rank: Axes of a value: 2 for pictures, 1 for sound and series, 3 for video.
        signs: By what its data are known.
        parts: Makes its files, values, quality and show, once, at first use: heavy imports belong there.
    """

    name: str
    rank: int
    signs: Signs
    parts: Callable[[], tuple[Any, Any, Any, Any]] = field(repr=False)

    @cached_property
    def _parts(self) -> tuple[Files, Values, Quality, Show]:
        return self.parts()

    @property
    def files(self) -> Files:
        """How its rows are read and written."""
        return self._parts[0]

    @property
    def values(self) -> Values:
        """What its rows are as numbers."""
        return self._parts[1]

    @property
    def quality(self) -> Quality:
        """How near reconstructions come."""
        return self._parts[2]

    @property
    def show(self) -> Show:
        """How people see them."""
        return self._parts[3]
