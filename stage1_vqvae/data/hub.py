"""Data sets of the Hub: read by `datasets` as tables, or, where these show no pictures, as a folder of files."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stage1_vqvae.data.classes import Label, no_label_column, read_labels
from stage1_vqvae.data.lists import split_of_lists
from stage1_vqvae.data.rows import RawData, Split
from stage1_vqvae.data.splits import pairs_in_words, split_column_notes, splits_of
from stage1_vqvae.data.tables import NoValues, array_of, columns_not_read, in_lists, values_column
from stage1_vqvae.modalities import MODALITIES, Wanted
from stage1_vqvae.modalities.pictures import PICTURES
from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError, VQPriorError, in_one_line
from vq_prior.core.hub.answers import gated, missing, refused, status_of, without_revision
from vq_prior.core.hub.client import NAME, REVISION, HubId, fetch
from vq_prior.core.modality import Encoded, Modality

DATA_ID = re.compile(rf"({NAME})(?::([\w.-][\w. -]*))?(?:@({REVISION}))?")
CHOICE = re.compile(r"(?:available configs: |Available: )(\[.*?\])", re.DOTALL)
MOST_CAUSES = 10
LISTS_AT_ONCE = 1000
BESIDE = ("txt", "csv", "jsonl", "parquet")  # captions and metadata


class HubRows:
    """The column of files of a `datasets.Dataset`, undecoded."""

    def __init__(self, column: Any, source: str) -> None:
        self._column, self._source = column, source

    def __len__(self) -> int:
        return len(self._column)

    def encoded(self, row: int) -> Encoded:
        """Return the file's bytes, or its numbers as an array."""
        value = self._column[row]
        return array_of(value, self.name(row)) if isinstance(value, list) else _file(value, self.name(row))

    def element(self, row: int, place: int) -> Encoded:
        """Return a file of the list of a row."""
        return _file(self._column[row][place], f"{self.name(row)} image {place}")

    def name(self, row: int) -> str:
        """Return the data set and the row."""
        return f"{self._source} row {row}"


def _file(value: Any, name: str) -> bytes:
    if isinstance(value, bytes):
        return value
    if value is None:
        raise ArtifactError(f"{name} holds no file")
    if isinstance(value.get("bytes"), bytes):
        return bytes(value["bytes"])
    try:
        return Path(value["path"]).read_bytes()
    except (OSError, TypeError) as error:
        raise ArtifactError(f"{name} cannot be read") from error


def is_data_id(data: str) -> bool:
    """Return whether a text has the form of a Hub data set, `owner/name[:config][@revision]`."""
    return DATA_ID.fullmatch(data) is not None


def open_hub(data: str, wanted: Wanted, open_folder: Callable[[Path, Wanted], RawData]) -> RawData:
    """Return the rows of a Hub data set `owner/name[:config][@revision]`.

    Args:
        data: As it is typed.
        wanted: What the user said of it.
        open_folder: Opens a folder of files, which a data set of pictures with captions beside them is read as.

    Raises:
        ArtifactError: If there is none of that name, it is not shown, or it holds no values.
        UsageError: If a configuration, a split or a column is not there.
        EnvironmentFault: If the Hub cannot be reached.
    """
    match = DATA_ID.fullmatch(data)
    assert match is not None
    name, config, revision = match.groups()
    try:
        return _raw(_loaded(data, name, config, revision), data, wanted)
    except NoValues as nothing:
        folder = None if config else _pictures(HubId(name, revision), nothing)
        if folder is None:
            raise
        raw = open_folder(folder, wanted)
        captions = len(list(folder.rglob("*.txt")))
        reading = f"{data}: read as a folder of files, for `datasets` finds no pictures in it"
        unused = [f"{data}: {captions} texts beside the pictures were fetched, and are not used"] if captions else []
        return replace(raw, notes=(reading, *unused, *raw.notes))


def _loaded(data: str, name: str, config: str | None, revision: str | None) -> Any:
    """Return what `datasets` loads, explaining what went wrong."""
    import datasets

    try:
        return datasets.load_dataset(name, *([config] if config else []), revision=revision)
    except Exception as error:  # data set builders raise whatever they like
        raise _explained(error, data) from error


def _explained(error: Exception, data: str) -> VQPriorError:
    """Return an error of `datasets` as one of ours, by what lies behind it."""
    import datasets

    chain = list(_chain(error))
    text = " ".join(map(in_one_line, chain))
    if choice := CHOICE.search(text):
        known = ", ".join(re.findall(r"'([^']*)'", choice[1]))
        return UsageError(
            f"{data} has the configurations {known}; name one as {data.partition('@')[0].partition(':')[0]}:NAME"
        )
    refusals = [status for status in map(status_of, chain) if status in (401, 403)]
    kinds = {type(each).__name__ for each in chain}
    if "GatedRepoError" in kinds or "gated" in text:
        return gated(data)
    if "RevisionNotFoundError" in kinds or text.startswith("Revision "):
        return without_revision(data)
    if "RepositoryNotFoundError" in kinds or isinstance(error, datasets.exceptions.DatasetNotFoundError):
        return missing(data)
    if refusals:
        return refused(data, refusals[0])
    if kinds & {"EmptyDatasetError", "DataFilesNotFoundError"}:
        return NoValues(f"{data} holds no files that `datasets` reads ({in_one_line(chain[-1])})")
    cause = f"{type(chain[-1]).__name__}: {in_one_line(chain[-1])}"
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return EnvironmentFault(f"{data} does not exist as a path, and the Hub did not answer for it ({cause})")
    return ArtifactError(f"{data} cannot be loaded from the Hub ({cause})")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, the first cause last."""
    seen: list[BaseException] = []
    while error not in seen and len(seen) < MOST_CAUSES:
        seen.append(error)
        yield error
        behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if behind is None:
            return
        error = behind


def _raw(loaded: Any, data: str, wanted: Wanted) -> RawData:
    """Return the rows of the splits that are for training and held out, or of the one that was asked for."""
    notes: list[str] = []
    parts: dict[str, Part] = {}
    kinds = splits_of(map(str, loaded))
    if wanted.split is not None:
        if wanted.split not in loaded:
            raise UsageError(f"--split {wanted.split} is not in {data}, which has {', '.join(map(str, loaded))}")
        kinds = {wanted.split: "train"}
    for split, table in loaded.items():
        kind = kinds.get(str(split))
        if kind in ("train", "validation") and kind not in parts:
            parts[kind] = _part(table, data, wanted)
            notes += [note for note in parts[kind].notes if note not in notes]
        else:
            notes.append(f"left the {len(table)} rows of split {split} untouched")
    if "train" not in parts:
        known = ", ".join(map(str, loaded))
        raise ArtifactError(f"{data} has no train split, only {known}; choose one to train on by --split")
    train, validation = parts["train"], parts.get("validation")
    if len(loaded) > 1:
        taken = {str(split): kinds.get(str(split), "left out") for split in loaded}
        notes.insert(0, f"splits: {pairs_in_words(taken)}")
    held_out = None if validation is None else validation.split
    return RawData(train.split, held_out, train.modality, train.why, train.names, tuple(notes))


@dataclass(frozen=True)
class Part:
    """One split: its rows, the names of its classes, its kind and why it is that, and what to say."""

    split: Split
    names: tuple[str, ...] | None
    modality: Modality
    why: str
    notes: list[str]


def _part(table: Any, data: str, wanted: Wanted) -> Part:
    import datasets

    columns, label = list(table.column_names), wanted.label_column
    if label is not None and label not in columns:
        raise UsageError(f"--label-column {label} is not in {data}, which has {', '.join(columns)}")
    modality, why, values = values_column(table.features.arrow_schema, wanted, data)
    label = label or ("label" if "label" in columns else None)
    undecoded, feature = table.select_columns([values]), table.features[values]
    listed = in_lists(table.features.arrow_schema, values)
    if modality is MODALITIES["pictures"]:
        image = datasets.Image(decode=False)
        undecoded = undecoded.cast_column(values, datasets.List(image) if listed else image)
    elif hasattr(feature, "decode"):
        undecoded = undecoded.cast_column(values, type(feature)(decode=False))
    classes = table.features[label] if label else None
    names = tuple(classes.names) if isinstance(classes, datasets.ClassLabel) else None
    notes = columns_not_read(table.features.arrow_schema, modality, values, wanted)
    notes += no_label_column([name for name in columns if name != values])
    of_splits = split_column_notes(columns, lambda name: list(table[name]))
    labels: list[Label] | None = None
    if label is not None:
        is_named = wanted.label_column is not None
        labels, notes = read_labels(table[label], label, data, is_named=is_named, has_names=names is not None)
    rows = HubRows(undecoded[values], data)
    split = Split(rows, labels)
    if listed:
        batches = undecoded.with_format("arrow").iter(LISTS_AT_ONCE)
        split, said = split_of_lists(rows, (batch[values] for batch in batches), labels, str(table.split))
        notes = [*notes, *said]
    return Part(split, names, modality, why, notes + of_splits)


def _pictures(repo: HubId, nothing: NoValues) -> Path | None:
    """Return a folder of the cache with the pictures of a data set and what lies beside them; None if it has none."""
    suffixes = "|".join(suffix[1:] for suffix in PICTURES.signs.suffixes)
    wanted = re.compile(rf".+\.(?i:{suffixes}|{'|'.join(BESIDE)})")
    try:
        folder = fetch(repo, wanted=wanted, repo_type="dataset")
    except VQPriorError:
        raise nothing from None
    there = any(path.suffix.lower() in PICTURES.signs.suffixes for path in folder.rglob("*"))
    return folder if there else None
