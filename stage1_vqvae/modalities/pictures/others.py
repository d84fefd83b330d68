"""Files that people take for pictures and that are not read: what each is, by its suffix or by how it begins."""

from vq_prior.core.disk.pointers import is_pointer, pointer_text

CONVERT = "convert them to PNG or JPEG"
# Suffixes of pictures that are not read, and how files of other formats begin, whatever their suffix.
UNREAD: tuple[str, ...] = (
    ".heic",
    ".heif",
    ".avif",
    ".jxl",
    ".jp2",
    ".j2k",
    ".psd",
    ".svg",
    ".exr",
    ".hdr",
    ".tga",
    ".ico",
    ".dng",
)
UNREAD += (".raw", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".eps", ".pdf", ".fits")
BEGINNINGS = (
    (4, (b"ftypavif", b"ftypavis"), "an AVIF picture"),
    (4, (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1"), "a HEIC picture"),
    (4, (b"ftyp",), "a video"),
    (0, (b"\xff\x0a", b"\x00\x00\x00\x0cJXL "), "a JPEG XL picture"),
    (0, (b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51"), "a JPEG 2000 picture"),
    (0, (b"8BPS",), "a Photoshop file"),
    (0, (b"%PDF",), "a PDF file"),
    (0, (b"<svg", b"<?xml"), "an SVG picture"),
    (0, (b"\x76\x2f\x31\x01",), "an OpenEXR picture"),
    (0, (b"#?RADIANCE",), "a Radiance picture"),
    (0, (b"<!doctype html", b"<html", b"<head"), "a web page: its download failed"),
    (0, (b"PK\x03\x04",), "a zip archive"),
    (0, (b"\x1f\x8b",), "a gzip archive"),
)


def other_format(encoded: bytes, name: str) -> str | None:
    """Return what is said of a file of a format that is known and not read; None of any other."""
    if is_pointer(encoded):
        return pointer_text(name)
    head = encoded[:64].lstrip().lower() if encoded[:1] in (b" ", b"\n", b"\r") else encoded[:64].lower()
    names = (what for at, starts, what in BEGINNINGS if head[at:].startswith(tuple(map(bytes.lower, starts))))
    if (what := next(names, None)) is None:
        return None
    remedy = "fetch it anew" if "failed" in what else "convert it to PNG or JPEG" if "picture" in what else "remove it"
    return f"{name} is {what}, which is not read; {remedy}"
