"""Kinds of data: which there are, and which one some data are of. Imports nothing heavy.

A kind is one folder here and one line below, or an object of an installed package under the entry point group
`vq_prior.modalities`.

| what DATA holds | is |
|---|---|
| files | the kind of their suffix; GIFs and folders of frames are pictures, and video only by `--modality video` |
| a column of files (bytes) | the kind of its type, else pictures |
| an array (.npy, .h5) or a column of lists, integers of 8 or 16 bits, [N, H, W] or [N, H, W, 1, 3 or 4] | pictures |
| the same, floating point [N, D] | vectors |
| the same, floating point [N, T, C], or lists of lists | series |
| all other arrays | arrays |

More than one possible kind is refused with the flag that chooses; `--modality` wins always.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stage1_vqvae.modalities.pictures import PICTURES, pictures_in
from vq_prior.core.config import from_json, to_json
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.modality import Form, Header, Modality
from vq_prior.core.registry import Registry

MODALITIES: Registry[Modality] = Registry("modality", group="vq_prior.modalities")
MODALITIES.add("pictures", PICTURES)

# What files and columns are by name, kinds that this version does not read among them: they are called what they are.
SUFFIXES = {
    "pictures": PICTURES.signs.suffixes,
    "video": (".mp4", ".webm", ".mov", ".mkv"),
    "sound": (".wav", ".flac", ".ogg", ".mp3"),
    "arrays": (".nii", ".dcm"),
}
FEATURES = {"Image": "pictures", "Video": "video", "Audio": "sound"}


@dataclass(frozen=True)
class Wanted:
    """What a user said of DATA.

    Attributes:
        modality: Name of the kind, or None where the data is to tell.
        columns: Column of the values in tables, by kind.
        label_column: Column of the labels, or None.
        split: The split to take alone, or None.
        labels_file: Table of the labels of a folder's files, or None.
        file_column: Its column of the files, or None.
        classes: Names of the classes to take, as they are typed; None takes all.
        max_images: Rows of each split to take at most; None takes all.
        frames: "all" where every frame of a file is to be a row, else None.
        shard_cache_mib: MiB of disk for shards of a web server; None is a default.
    """

    modality: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    label_column: str | None = None
    split: str | None = None
    labels_file: str | None = None
    file_column: str | None = None
    classes: str | None = None
    max_images: int | None = None
    frames: str | None = None
    shard_cache_mib: int | None = None

    def kind(self) -> str | None:
        """Return the kind that was named, or that a column flag means; raises `UsageError` if these differ."""
        meant = {*self.columns} | ({self.modality} if self.modality else set())
        if len(meant) > 1:
            flags = [f"--modality {self.modality}"] if self.modality else []
            flags += [f"{column_flag(MODALITIES[kind])} {name}" for kind, name in self.columns.items()]
            raise UsageError(f"{' and '.join(flags)} name different kinds of data; give one")
        return next(iter(meant), None)


def installed() -> Iterable[Modality]:
    """Yield every kind that can be read here."""
    return (MODALITIES[name] for name in MODALITIES.names())


def column_flag(modality: Modality) -> str:
    """Return the flag that names a kind's column in tables."""
    return f"--{modality.signs.column.replace('_', '-')}-column"


def kinds_of_suffix(suffix: str) -> tuple[str, ...]:
    """Return the kinds that files of a suffix (lower case, with the dot) may be of, readable ones first."""
    own = [kind.name for kind in installed() if suffix in kind.signs.suffixes]
    return (*own, *(name for name, suffixes in SUFFIXES.items() if suffix in suffixes and name not in own))


def kinds_of_array(dtype: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Return the kinds that an array [N, ...] may be of, readable ones first; -1 is an axis whose size differs.

    >>> kinds_of_array("float32", (100, 16))
    ('vectors',)
    """
    own = [kind.name for kind in installed() if kind.signs.arrays and kind.signs.arrays(dtype, shape)]
    if own:
        return tuple(own)
    if dtype.startswith("float") and len(shape) in (2, 3):
        return ("vectors",) if len(shape) == 2 else ("series",)
    return ("arrays",)


def kind_of_feature(name: str) -> str | None:
    """Return the kind of a column by the name of its type in the features of `datasets`; None if it is of none."""
    own = next((kind.name for kind in installed() if kind.signs.feature == name), None)
    return own or FEATURES.get(name)


def chosen(found: Mapping[str, str], data: str) -> tuple[Modality, str]:
    """Return the one kind that data can be, and why.

    Args:
        found: Kinds that it may be, each with what speaks for it: {"pictures": "12 png files"}.
        data: What to call it in a message.

    Raises:
        UsageError: If it may be several.
        ArtifactError: If it is of a kind that this version does not read.
    """
    readable = {name: why for name, why in found.items() if name in MODALITIES}
    if not readable:
        kinds = " or ".join(f"{name} ({why})" for name, why in found.items())
        raise ArtifactError(f"{data} looks like {kinds}; this version reads {', '.join(MODALITIES.names())}")
    if len(readable) > 1:
        kinds = " and ".join(f"{name} ({why})" for name, why in readable.items())
        flags = " or ".join(f"--modality {name}" for name in readable)
        raise UsageError(f"{data} may be {kinds}; choose by {flags}")
    name, why = next(iter(readable.items()))
    return MODALITIES[name], why


def named(name: str, data: str) -> Modality:
    """Return the kind that `--modality` names; raises `UsageError` if this version does not read it."""
    if name not in MODALITIES:
        known = ", ".join(MODALITIES.names())
        raise UsageError(f"--modality must be one of {known}, got {name} for {data}")
    return MODALITIES[name]


def own_settings(modality: Modality, settings: Any) -> Any:
    """Return what a command's settings say to a kind: an instance of its own settings, None where it has none.

    Raises:
        UsageError: If the flags of another kind were given, or a value is not of its type.
    """
    options: dict[str, Any] = getattr(settings, "options", None) or {}
    for other in installed():
        own = other.signs.settings
        if other.name == modality.name or own is None:
            continue
        for each in dataclasses.fields(own):
            given = (
                getattr(settings, each.name, None) if other.signs.flat else options.get(other.name, {}).get(each.name)
            )
            if given is not None and given != each.default:
                flag = each.name if other.signs.flat else f"{other.name}.{each.name}"
                raise UsageError(
                    f"--{flag.replace('_', '-')} is for {other.name}, and this data is {modality.name}; leave it out"
                )
    own = modality.signs.settings
    if own is None:
        return None
    if modality.signs.flat:
        return own(**{each.name: getattr(settings, each.name, None) for each in dataclasses.fields(own)})
    try:
        return from_json(own, options.get(modality.name, {}), f"--{modality.name}")
    except ArtifactError as error:
        raise UsageError(str(error)) from error


def with_own_settings(settings: Any, modality: Modality, own: Any) -> Any:
    """Return a command's settings with the resolved ones of a kind put in; those of pictures are fields of its own."""
    changes: dict[str, Any] = {"modality": None if modality.name == PICTURES.name else modality.name}
    if own is not None and modality.signs.flat:
        changes |= to_json(own)
    elif own is not None:
        changes["options"] = {modality.name: to_json(own)}
    return dataclasses.replace(settings, **changes)


def in_form(modality: Modality, form: Form) -> Modality:
    """Return the kind set to store, write and measure values of one form: pictures in the units of a range, or with
    alpha.
    """
    if modality.name != PICTURES.name:
        return modality
    return pictures_in(getattr(form, "range", None), alpha=getattr(form, "alpha", None) == "keep")


def measured_of(form: Form) -> dict[str, str]:
    """Return what the measures are of where that is not plain pictures of bytes, to stand beside them.

    Returns:
        `psnr_range`, the range of pictures of more bits, or `measures_of`, of pictures with alpha; else nothing.
    """
    chosen, alpha = getattr(form, "range", None), getattr(form, "alpha", None)
    of_range = {"psnr_range": "{}..{}".format(*chosen)} if chosen else {}
    return of_range | ({"measures_of": "colour over white and alpha"} if alpha == "keep" else {})


def told_of_form(modality: Modality, transform: Form, headers: Sequence[Header]) -> Sequence[str]:
    """Return what bringing rows with these headers to a form takes away from them, a sentence each; often nothing."""
    describe = getattr(modality.values, "told", None)  # a kind may say nothing of it
    return describe(transform, headers) if describe else ()


def preprocessing(modality: Modality, transform: Form) -> dict[str, Any]:
    """Return what `preprocessor_config.json` and a codec's identity say of its data; pictures are not named."""
    named_kind = {} if modality.name == PICTURES.name else {"modality": modality.name}
    return named_kind | transform.describe()


def read_preprocessing(description: Mapping[str, Any], where: str) -> tuple[Modality, Form]:
    """Return the kind and the transform that `preprocessing` described.

    Raises:
        ArtifactError: If an entry is malformed, or the kind is none that can be read here.
    """
    name = description.get("modality", PICTURES.name)
    if not isinstance(name, str) or name not in MODALITIES:
        raise ArtifactError(
            f"{where}: modality {str(name)[:60]!r} cannot be read here, which reads {', '.join(MODALITIES.names())}; "
            "install the package that brings it"
        )
    rest = {key: value for key, value in description.items() if key != "modality"}
    form = MODALITIES[name].values.from_description(rest, where)
    return in_form(MODALITIES[name], form), form
