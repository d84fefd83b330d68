"""Archives as DATA: a `.zip` or `.tar` read where it lies, and the shards of a WebDataset.

An archive of files is read as the folder that it would be unpacked to, by the same rules. In a WebDataset the files of
a sample stand one after the other under one name: `000123.jpg`, `000123.cls`, `000123.json`.

Letters: n rows.
"""

import re
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from stage1_vqvae.data.classes import read_labels
from stage1_vqvae.data.rows import MAX_FILE_BYTES, FileRows, RawData, Split
from stage1_vqvae.data.splits import SPLIT_OF, split_in
from stage1_vqvae.modalities import MODALITIES, Wanted, chosen, column_flag, kinds_of_suffix, named
from vq_prior.core.config import parse_json
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.modality import Encoded, Header, Modality

ARCHIVE_SUFFIXES = (".zip", ".tar")
MAX_SIDE_BYTES = 64 << 20
BLOCK = 512  # bytes; of a .tar
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, tarfile.TarError)


@dataclass(frozen=True)
class Member:
    """A file of an archive: its path in there and its size, and in a `.tar` where its bytes begin."""

    path: str
    size: int
    offset: int = 0


class Zip:
    """A `.zip`; its files are read by any number of threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = zipfile.ZipFile(path)
            infos = [info for info in self._file.infolist() if not info.is_dir()]
        except UNREADABLE as error:
            raise ArtifactError(f"{path} is not a readable .zip ({str(error)[:80]})") from error
        locked = next((info for info in infos if info.flag_bits & 1), None)
        if locked is not None:
            raise ArtifactError(f"{path} is locked by a password ({locked.filename[:60]}); unpack it")
        self.members = [Member(info.filename, info.file_size) for info in infos]

    def read(self, member: Member) -> bytes:
        """Return a file's bytes; raises `ArtifactError` if they cannot be read, or are not those of its checksum."""
        try:
            with self._file.open(member.path) as file:
                content = file.read(member.size + 1)
        except (*UNREADABLE, zlib.error) as error:
            raise ArtifactError(f"{self.path}: {member.path} cannot be read ({str(error)[:80]})") from error
        if len(content) != member.size:
            raise ArtifactError(f"{self.path}: {member.path} has another size than its archive says")
        return content


class Tar:
    """A `.tar` that is not compressed; its files are read by any number of threads."""

    def __init__(self, path: Path | str, file: IO[bytes] | None = None) -> None:
        """Take its path, or what it is called and an open file."""
        self.path, end = path, 0
        self.members: list[Member] = []
        with Path(path).open("rb") if file is None else nullcontext(file) as content:
            content.seek(0)
            try:
                with tarfile.open(fileobj=content, mode="r:") as archive:
                    for info in archive:
                        if info.issparse() or not (info.isfile() or info.isdir()):
                            raise ArtifactError(f"{path}: {info.name[:60]} is a link, or no plain file; unpack it")
                        end = info.offset_data + -(-info.size // BLOCK) * BLOCK
                        if info.isfile():
                            self.members.append(Member(info.name.removeprefix("./"), info.size, info.offset_data))
            except ArtifactError:
                raise
            except UNREADABLE as error:
                raise ArtifactError(f"{path} is not a readable .tar ({str(error)[:80]})") from error
            # A reader that comes to the end of the file takes it for the end of the archive, whatever was to follow.
            content.seek(end)
            if content.read(BLOCK) != bytes(BLOCK):
                raise ArtifactError(f"{path} has no end mark behind its last file: it is cut off; fetch it anew")

    def read(self, member: Member) -> bytes:
        """Return a file's bytes; raises `ArtifactError` if they cannot be read."""
        try:
            with Path(self.path).open("rb") as file:
                file.seek(member.offset)
                content = file.read(member.size)
        except OSError as error:
            raise ArtifactError(f"{self.path}: {member.path} cannot be read: {error.strerror}") from error
        if len(content) != member.size:
            raise ArtifactError(f"{self.path} is cut off inside {member.path}; fetch it anew")
        return content


class ArchiveRows:
    """Files of archives, in the order given."""

    def __init__(self, files: Sequence[tuple[Zip | Tar, Member]]) -> None:
        self._files = list(files)

    def __len__(self) -> int:
        return len(self._files)

    def encoded(self, row: int) -> Encoded:
        """Return the file's bytes; raises `ArtifactError` if it cannot be read."""
        archive, member = self._files[row]
        if member.size > MAX_FILE_BYTES:
            raise ArtifactError(f"{self.name(row)} has {member.size} bytes, more than the {MAX_FILE_BYTES} allowed")
        return archive.read(member)

    def seen(self, row: int) -> tuple[bytes, Header] | None:
        """Return hash and header of a file where they are known; raises `ArtifactError` where it is known to be bad."""
        archive, member = self._files[row]
        seen = getattr(archive, "seen", None)
        return None if seen is None else seen(member)

    def name(self, row: int) -> str:
        """Return the archive and the path in it."""
        archive, member = self._files[row]
        return f"{archive.path}/{member.path}"


def open_archive(path: Path) -> Zip | Tar:
    """Return a `.zip` or `.tar` with its files; raises `ArtifactError` if it is none, or a name in it no plain path."""
    archive: Zip | Tar = Zip(path) if path.suffix.lower() == ".zip" else Tar(path)
    require_plain_names(archive)
    return archive


def require_plain_names(archive: Zip | Tar) -> None:
    """Raise `ArtifactError` if a name in an archive is no plain path, or stands there twice."""
    seen: set[str] = set()
    for member in archive.members:
        parts = PurePosixPath(member.path).parts
        if member.path.startswith("/") or "\\" in member.path or "\0" in member.path or ".." in parts:
            raise ArtifactError(
                f"{archive.path} holds a file named {member.path[:60]!r}, which is no plain relative path"
            )
        if member.path in seen:
            raise ArtifactError(f"{archive.path} holds {member.path[:60]} twice; pack it anew")
        seen.add(member.path)


def open_archives(paths: Sequence[Path], wanted: Wanted, *, open_folder: Any) -> RawData:
    """Return the rows of archives: those of a WebDataset where a file stands beside another one of its name, else those
    of the folder that the one archive would be unpacked to.

    Args:
        paths: The archives; several are shards of one WebDataset, with splits by their names.
        wanted: What the user said of the data.
        open_folder: Reads a folder by the rules for folders.

    Raises:
        ArtifactError: If one is damaged, holds no rows, or several are no WebDataset.
        UsageError: If a sample has several files that may be its values.
    """
    archives = [open_archive(path) for path in sorted(paths)]
    shards = [archive for archive in archives if isinstance(archive, Tar) and is_webdataset(archive)]
    if len(shards) == len(archives):
        return shards_as_rows(shards, wanted)
    if len(archives) > 1:
        raise ArtifactError(
            f"{paths[0].parent} holds {len(archives)} archives that are no shards of a WebDataset (NAME.jpg and "
            "NAME.cls side by side); unpack them into one folder, or give one"
        )
    return _as_folder(archives[0], wanted, open_folder)


def _as_folder(archive: Zip | Tar, wanted: Wanted, open_folder: Any) -> RawData:
    """Return the rows of an archive as those of the folder that it would be unpacked to.

    The rules for folders look at names, so they are given empty files of these names; tables of labels are whole.
    """
    held = {}
    with tempfile.TemporaryDirectory(prefix="vq-prior-") as temporary:
        root = Path(temporary).resolve() / Path(archive.path).name
        root.mkdir()
        for member in archive.members:
            place = root / member.path
            place.parent.mkdir(parents=True, exist_ok=True)
            whole = place.suffix.lower() in (".csv", ".json", ".jsonl") or place.name == "metadata.parquet"
            place.write_bytes(archive.read(member) if whole and member.size <= MAX_SIDE_BYTES else b"")
            held[str(place)] = member

        def plainly(text: str) -> str:
            return text.replace(str(root), str(archive.path))

        try:
            raw: RawData = open_folder(root, wanted)
        except (ArtifactError, UsageError) as error:
            raise type(error)(plainly(str(error))) from None

        def packed(split: Split) -> Split:
            if not isinstance(split.rows, FileRows):
                raise ArtifactError(f"{archive.path} holds tables, or files that are read in parts; unpack it")
            return replace(split, rows=ArchiveRows([(archive, held[path]) for path in split.rows.paths]))

        return replace(
            raw,
            train=packed(raw.train),
            validation=raw.validation and packed(raw.validation),
            notes=tuple(plainly(note) for note in raw.notes),
            missing={plainly(name): plainly(why) for name, why in raw.missing.items()},
        )


def shards_in(folder: Path) -> list[Path]:
    """Return the `.tar` files of a folder that holds nothing else but texts beside them; none of any other folder."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    shards = [path for path in files if path.suffix.lower() == ".tar"]
    others = [path for path in files if path not in shards and path.suffix.lower() not in (".json", ".md", ".txt")]
    return [] if others else sorted(shards)


def ending_of(member: Member) -> str:
    """Return what follows the name of a sample, in lower case, such as "jpg" or "seg.png"."""
    return member.path.rpartition("/")[2].partition(".")[2].lower()


def _samples(archive: Tar) -> dict[str, dict[str, Member]]:
    """Return the files of each sample by what follows its name, such as "jpg" or "seg.png"."""
    samples: dict[str, dict[str, Member]] = {}
    for member in archive.members:
        folder, _, name = member.path.rpartition("/")
        stem, ending = name.partition(".")[0], ending_of(member)
        if stem and ending:
            samples.setdefault(f"{folder}/{stem}", {})[ending] = member
    return samples


def _kinds(ending: str) -> tuple[str, ...]:
    return tuple(kinds_of_suffix("." + ending.rpartition(".")[2]))


def is_webdataset(archive: Tar) -> bool:
    """Return whether some value in an archive has another file of its name beside it."""
    return any(len(parts) > 1 and any(map(_kinds, parts)) for parts in _samples(archive).values())


def shards_as_rows(archives: Sequence[Tar], wanted: Wanted) -> RawData:
    """Return the rows of the shards of a WebDataset."""
    groups: dict[str, list[Tar]] = {}
    for archive in archives:
        split_named = split_in(PurePosixPath(str(archive.path)).stem) if len(archives) > 1 else None
        groups.setdefault(split_named[0] if split_named else "train", []).append(archive)
    notes: list[str] = []
    if wanted.split is not None:
        split_wanted = SPLIT_OF.get(wanted.split, wanted.split)
        if split_wanted not in groups:
            raise UsageError(f"--split {wanted.split} is not among the shards, which are {', '.join(groups)}")
        notes.append(f"left {len(archives) - len(groups[split_wanted])} shard(s) of other splits untouched")
        groups = {"train": groups[split_wanted]}
    if untouched := groups.pop("test", []):
        notes.append(f"left {len(untouched)} test shard(s) untouched")
    if "train" not in groups:
        raise ArtifactError(f"there are no training shards among {len(archives)}, only {', '.join(groups)}")
    samples = {
        split: [(archive, name, parts) for archive in members for name, parts in _samples(archive).items()]
        for split, members in groups.items()
    }
    everything = [parts for some in samples.values() for _, _, parts in some]
    modality, why, endings = _values(everything, wanted, str(archives[0].path))
    label = _label_of(everything, wanted)
    splits, used = {}, {*endings, label}
    for split, some in samples.items():
        files: list[tuple[Zip | Tar, Member]] = []
        labels: list[Any] = []
        bare = 0
        for archive, name, parts in some:
            there = [ending for ending in endings if ending in parts]
            if len(there) > 1:
                raise UsageError(
                    f"{archive.path}/{name} has several files that may be its image ({', '.join(there)}); choose one "
                    f"by --image-column {there[0]}"
                )
            if not there:
                bare += 1
                continue
            files.append((archive, parts[there[0]]))
            labels.append(_label(archive, name, parts, label) if label else None)
        if bare:
            notes.append(f"skipped {bare} sample(s) of the {split} shards without a {' or '.join(endings)} file")
        read = None
        if label is not None and any(each is not None for each in labels):
            read, said = read_labels(labels, label, str(some[0][0].path), is_named=wanted.label_column is not None)
            notes += said
        splits[split] = Split(ArchiveRows(files), read)
    unused = sorted({ending for parts in everything for ending in parts} - used - ({"json"} if label else set()))
    if unused:
        notes.append(f"did not read the .{', .'.join(unused)} files of the samples")
    return RawData(splits["train"], splits.get("validation"), modality, why, None, tuple(notes))


def _values(samples: Sequence[dict[str, Member]], wanted: Wanted, where: str) -> tuple[Modality, str, list[str]]:
    """Return the kind of the values of samples, why it is that, and the endings of their files."""
    endings = sorted({ending for parts in samples for ending in parts})
    for kind, column in wanted.columns.items():
        if column.lower() not in endings:
            flag = column_flag(MODALITIES[kind])
            raise UsageError(f"{flag} {column} is not in {where}, whose samples have {', '.join(endings)}")
        return MODALITIES[kind], f"by {column_flag(MODALITIES[kind])}", [column.lower()]
    endings_of: dict[str, list[str]] = {}
    for ending in endings:
        for kind in _kinds(ending):
            endings_of.setdefault(kind, []).append(ending)
    if wanted.modality is not None:
        modality, why = named(wanted.modality, where), "by --modality"
    else:
        modality, why = chosen({kind: f".{', .'.join(some)} files" for kind, some in endings_of.items()}, where)
    if modality.name not in endings_of:
        raise ArtifactError(f"{where} holds no files of {modality.name} (its samples have {', '.join(endings)})")
    return modality, why, endings_of[modality.name]


def _label_of(samples: Sequence[dict[str, Member]], wanted: Wanted) -> str | None:
    """Return where the labels of samples stand: an ending, such as "cls", or a key of their json; None without any."""
    if wanted.label_column is not None:
        return wanted.label_column
    return "cls" if any("cls" in parts for parts in samples) else "label" if any("json" in p for p in samples) else None


def _label(archive: Tar, name: str, parts: dict[str, Member], label: str) -> Any:
    """Return what stands for the label of a sample: the text of a file, an integer where it is digits, or an entry."""
    if label in parts:
        text = archive.read(parts[label]).decode("utf-8", errors="replace").strip()
        return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else text or None
    if "json" not in parts:
        return None
    entries = parse_json(archive.read(parts["json"]), f"{archive.path}/{name}.json")
    return entries.get(label) if isinstance(entries, dict) else None
