"""The page of a report as data, and how it becomes one HTML file without network or script.

A click on a picture shows it larger: that is a `<details>` whose open state covers the window.
"""

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from vq_prior.judge.chart import Chart

PAGE_WIDTH, GAP = 1104, 8  # of a window of 1,200 pixels, within margins
SMALL, THUMB, WIDEST, LARGE, LARGE_OF_TWO = 128, 96, 264, 640, 512


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first of each its name; with a title it can be folded.

    Attributes:
        rows: All as long as `head`, if that is there.
        title: Of the fold.
        head: Names of the columns.
    """

    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    head: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG in base64, the width and height it is shown at, and those after a click, in pixels of the page."""

    png: str
    width: int
    height: int
    large_width: int
    large_height: int


@dataclass(frozen=True)
class Tile:
    """One thing to look at: a click shows it larger.

    Attributes:
        pictures: One, or an original and its copy.
        label: Beneath it.
        about: What else is known of it, told when it is large.
    """

    pictures: tuple[Picture, ...]
    label: str = ""
    about: str = ""


@dataclass
class Section:
    """A part of the page.

    Attributes:
        title: Its heading.
        text: Under it.
        tiles: Pictures, side by side.
        columns: Tiles in a row; None: as many as fit.
        charts: Curves.
        tables: Folded where they have a title.
        folded: Whether all of it is.
    """

    title: str
    text: str = ""
    tiles: list[Tile] = field(default_factory=list)
    columns: int | None = None
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    folded: bool = False


def shown_size(height: int, width: int, *, columns: int | None = None) -> tuple[int, int]:
    """Return height and width that a picture is shown at: whole multiples, where it has less than 128 pixels a side.

    A picture that is too wide for its place is shown smaller.

    >>> shown_size(8, 8), shown_size(32, 32), shown_size(64, 64), shown_size(200, 400)
    ((96, 96), (96, 96), (128, 128), (132, 264))

    Args:
        height: Of the picture.
        width: Of the picture.
        columns: That many have to fit beside each other on a page of 1,104 pixels; None: any number.
    """
    most = PAGE_WIDTH // columns - GAP if columns else WIDEST
    factor = max(2, ceil(THUMB / max(height, width))) if max(height, width) < SMALL else 1
    factor = max(1, min(factor, most // width))
    if width * factor <= most:
        return height * factor, width * factor
    return max(1, round(height * most / width)), most


def picture(png: bytes, *, columns: int | None = None, large: int = LARGE) -> Picture:
    """Return a PNG as it stands among others; large, the most whole times that stay within so many pixels a side."""
    height, width = png_size(png)
    shown = shown_size(height, width, columns=columns)
    factor = max(1, large // max(height, width))
    return Picture(base64.b64encode(png).decode(), shown[1], shown[0], width * factor, height * factor)


def sheet_tile(png: bytes, label: str) -> Tile:
    """Return a sheet of many pictures, as many whole times its size as the page is wide; a click doubles that."""
    height, width = png_size(png)
    factor = max(1, PAGE_WIDTH // width)
    shown = min(width * factor, PAGE_WIDTH)
    large = 2 * factor if shown == width * factor else 1
    made = Picture(base64.b64encode(png).decode(), shown, round(height * shown / width), width * large, height * large)
    return Tile((made,), label)


def png_size(png: bytes) -> tuple[int, int]:
    """Return height and width of a PNG file, from its header."""
    width, height = struct.unpack(">II", png[16:24])
    return height, width


def render(
    title: str, verdict: str, status: Sequence[str], sections: Sequence[Section], *, written_by: str, again: int | None
) -> bytes:
    """Return the HTML file.

    Args:
        title: Of the page.
        verdict: Its first line.
        status: Lines on what is not finished.
        sections: In order.
        written_by: The program and its version.
        again: Seconds after which a browser should look for a newer page; None: never.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vq_prior.judge", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("report.html.j2").render(
        title=title, verdict=verdict, status=status, sections=sections, written_by=written_by, again=again
    )
    return text.encode("utf-8", "backslashreplace")
