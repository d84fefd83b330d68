"""The sheet of a folder of pictures: one picture of them all, `DIR.png` beside DIR, where nobody counts it as a sample.

A sheet of ours carries a mark, so that no other picture is ever replaced by one.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.disk.places import why_fixed
from vq_prior.core.errors import ArtifactError, UsageError

MARK = "vq-prior sheet"  # text of a PNG file, by the keyword `Software`
HEAD_BYTES = 512  # in which a mark stands if there is one


@dataclass(frozen=True)
class SheetPlace:
    """Where a sheet goes.

    Attributes:
        path: The file; None where there is no place for one.
        note: What to say of it at the start, if anything.
    """

    path: Path | None
    note: str = ""

    @property
    def is_missing(self) -> bool:
        """Return whether a sheet is wanted and not there."""
        return self.path is not None and not self.path.exists()

    @property
    def in_words(self) -> str:
        """Return what the line about what was written says of the sheet."""
        return "" if self.path is None else f", a sheet of them to {self.path}"

    def write(self, png: bytes) -> None:
        """Write the sheet, whole, if it has a place."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, png)


def is_sheet(path: Path) -> bool:
    """Return whether a file is a sheet that this program wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(HEAD_BYTES)


def sheet_place(out: Path, named: Path | None) -> SheetPlace:
    """Return where the sheet of the folder `out` goes: to `named`, else beside the folder if there is room for it.

    Raises:
        UsageError: If `named` is no name of a PNG file, lies in the folder, or is a file that is not ours.
        ArtifactError: If `named` cannot be written.
    """
    if named is not None:
        return SheetPlace(_place_named(out, named))
    why = f"{out} is a link" if out.is_symlink() else why_fixed(out)
    if why is None:
        beside = out.with_name(f"{out.name}.png")
        if not os.path.lexists(beside) or (is_sheet(beside) and not beside.is_symlink()):
            return SheetPlace(beside)
        why = f"{beside} is there and is no sheet of vq-prior"
    return SheetPlace(None, f"no sheet is written: {why}; --sheet FILE names another place")


def _place_named(out: Path, named: Path) -> Path:
    path, folder = named.resolve(), out.resolve()
    if path.suffix.lower() != ".png":
        raise UsageError(f"--sheet must be the name of a PNG file, such as sheet.png, got {named}")
    if path.is_relative_to(folder):
        raise UsageError(f"--sheet must lie outside of {out}, where it would be counted as a sample, got {named}")
    if path.exists() and not is_sheet(path):
        raise UsageError(f"--sheet {named} is there and is no sheet of vq-prior; choose another file")
    above = next(parent for parent in path.parents if parent.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise ArtifactError(f"--sheet {named} cannot be written: {above} is no folder that one may write to")
    return path if named.is_symlink() else named
