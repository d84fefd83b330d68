"""`training.json`: how a component was made and what was measured, for its card. Holds nothing that names a machine."""

import dataclasses
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vq_prior.core.config import from_json, pretty_json, read_json, to_json
from vq_prior.core.errors import ArtifactError
from vq_prior.core.hub.client import is_hub_id
from vq_prior.core.identity import file_sha256
from vq_prior.core.settings import Formerly, Free, Once, Place, settings_in

RECORD, WEIGHTS = "training.json", "model.safetensors"


@dataclass(frozen=True)
class TrainingRecord:
    """What a card tells of one stage.

    Attributes:
        format_version: Version of this file.
        command: The command, with every setting that is not its default.
        data: The images or codes, as `public_name` gives them.
        data_id: Hash of their content.
        num_train: Rows trained on.
        num_held_out: Rows measured.
        measured: Named results on the held-out rows.
        changes: What was changed on the way, a line each; a file without any has no such key.
    """

    format_version: int
    command: str
    data: str
    data_id: str
    num_train: int
    num_held_out: int
    measured: dict[str, Any]
    changes: tuple[str, ...] = ()


def public_name(text: str | Path) -> str:
    """Return a path as it may be published: as typed if it is relative, else its last part.

    >>> public_name("/data/pictures"), public_name("runs/cats"), public_name("../../me/pictures")
    ('pictures', 'runs/cats', 'pictures')
    """
    typed = str(text)
    if "://" in typed:  # URLs: what follows a question mark may be secret
        return " ".join(part.partition("?")[0].rpartition("/")[2] for part in typed.split())
    parts = PurePosixPath(typed).parts
    outside = Path(typed).is_absolute() or PureWindowsPath(typed).is_absolute() or typed.startswith("~")
    return (PurePosixPath(typed.replace("\\", "/")).name or "data") if outside or ".." in parts else typed


def command_line(command: str, settings: Any) -> str:
    """Return the command that these settings (a dataclass) were typed as; defaults and one-off flags are left out.

    Folders other than the data are written as what they are (RUN, CODES, ...), so that the same training anywhere
    gives the same line; Hub ids stay.
    """
    return shlex.join(["vq-prior", command, *_flags(settings, "--")])


def _flags(settings: Any, prefix: str) -> list[str]:
    words: list[str] = []
    known = {setting.name: setting for setting in settings_in(type(settings))}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            words += _flags(value, f"{prefix}{field.name.replace('_', '-')}.")
            continue
        setting = known[field.name]
        free, place, former = setting.mark(Free), setting.mark(Place), setting.mark(Formerly)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value == default or setting.mark(Once) or (free and not free.told):
            continue
        flag = prefix + (former.flag if former else setting.flag.removeprefix("--"))
        if place is not None and place.word is not None:
            words += [flag, str(value) if is_hub_id(value) else place.word]
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"{prefix}no-{flag.removeprefix(prefix)}")
            continue
        values = value if isinstance(value, tuple) else (value,)
        words += [flag, *(public_name(item) if isinstance(item, (str, Path)) else str(item) for item in values)]
    return words


def write_record(folder: Path, record: TrainingRecord) -> None:
    """Write `training.json` into a staging folder of the caller."""
    entries = {name: value for name, value in to_json(record).items() if value or name != "changes"}
    (folder / RECORD).write_bytes(pretty_json(entries))


def read_record(folder: Path) -> TrainingRecord | None:
    """Return the record of a component, None if it has none.

    Raises:
        ArtifactError: If it is malformed or of an unknown version.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    record = from_json(TrainingRecord, read_json(path), str(path))
    if record.format_version != 1:
        raise ArtifactError(f"{path} has format version {record.format_version}; this version reads 1")
    return record


def keep_record(source: Path | None, folder: Path) -> None:
    """Copy the record of the component at `source` into `folder` if both have the same weights.

    What was measured is true of those weights alone: of others, the record stays behind.
    """
    if source is None or not (source / RECORD).is_file() or not (source / WEIGHTS).is_file():
        return
    if file_sha256(source / WEIGHTS) == file_sha256(folder / WEIGHTS):
        shutil.copyfile(source / RECORD, folder / RECORD)
