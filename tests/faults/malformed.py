"""What may come from outside, made wrong at random: pictures, safetensors files and JSON."""

import copy
import io
import json
import random
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 0.5, 10**9, 2**31, 2**63, 10**30, -(10**30), float("nan"), float("inf"), 1e308),
    *("", "x", "../x", "/abs", "nul\0l", "\ud800", "x" * 70_000, "\x1b[31m", "os.system"),
    *([], {}, [[]], [None], [0] * 5000, {"": 0}, {"_target_": "os.system"}, {"auto_map": {"AutoConfig": "e.E"}}),
)
TEXTS: tuple[bytes, ...] = (
    b"",
    b"{",
    b"[]",
    b"null",
    b"1",
    b'"x"',
    b"NaN",
    b"\xff\xfe{}",
    b"\xef\xbb\xbf{}",
    b"\0" * 99,
)
TEXTS += (b"[" * 200_000, b'{"a":' * 100_000, b"[" + b"[]," * 300_000 + b"[]]", b'{"a": 1, "a": 2}', b"9" * 100_000)
SIZES = (0, 1, 4096, 16_384, 65_500, 2**31 - 1, 2**32 - 1)
ROTATED = bytes.fromhex("45786966000049492a0008000000010012010300010000000600")  # EXIF: a quarter turn


def _value(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(VALUES))  # what is put somewhere may be changed there


def bytes_changed(rng: random.Random, data: bytes) -> bytes:
    """Return bytes cut, overwritten, doubled, filled or put together anew, the start more often than the rest."""
    reach = rng.choice((16, 64, 256, len(data)))
    at = rng.randrange(max(1, min(reach, len(data))))
    some = rng.randbytes(rng.choice((1, 2, 4, 8, 40)))
    return rng.choice(
        (
            lambda: data[:at],
            lambda: data[:at] + some + data[at + len(some) :],
            lambda: data[:at] + some + data[at:],
            lambda: data[:at] + data[at + len(some) :],
            lambda: data[: at + 40] + data[at:],
            lambda: data[:at] + bytes(len(some)) + data[at + len(some) :],
            lambda: data[:at] + b"\xff" * len(some) + data[at + len(some) :],
            lambda: (
                data[:at] + struct.pack(">I", rng.choice((0, 16_384, 65_500, 2**31 - 1, 2**32 - 1))) + data[at + 4 :]
            ),
            lambda: data[:at] + struct.pack("<H", rng.choice((0, 1, 65_500, 65_535))) + data[at + 2 :],
            lambda: data + data,
            lambda: data[at:],
            lambda: bytes(b ^ (rng.random() < 0.01) * rng.randrange(256) for b in data),
            lambda: rng.randbytes(rng.randrange(300)),
        )
    )()


def pictures() -> dict[str, bytes]:
    """Return one good picture of every format and mode that is read."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    rgb = Image.fromarray(pixels)
    found = {}
    for name, picture, how in (
        ("png", rgb, {}),
        ("png", rgb.convert("P"), {"transparency": 3}),
        ("png", Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
        ("png", rgb.convert("RGBA"), {"compress_level": 0}),
        ("jpeg", rgb, {}),
        (
            "jpeg",
            rgb,
            {"progressive": True, "exif": bytes.fromhex("45786966000049492a0008000000010012010300010000000600")},
        ),
        ("jpeg", rgb.convert("L"), {}),
        ("jpeg", rgb.convert("CMYK"), {}),
        ("gif", rgb, {"save_all": True, "append_images": [rgb.rotate(90)]}),
        ("webp", rgb, {}),
        ("webp", rgb.convert("RGBA"), {"lossless": True}),
        ("bmp", rgb, {}),
        ("tiff", rgb, {}),
        ("tiff", rgb, {"compression": "tiff_lzw"}),
        ("ppm", rgb, {}),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, format=name, **how)
        found[f"{len(found):02d}.{name}"] = buffer.getvalue()
    return found


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where every value below a JSON value stands, that one included."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    return [path, *(deeper for key, item in inside for deeper in paths_of(item, (*path, key)))]


def json_changed(rng: random.Random, data: bytes) -> bytes:
    """Return JSON in which a value is another, a key is lost, new or there twice; or text that is none."""
    if rng.random() < 0.2:
        return rng.choice((rng.choice(TEXTS), data + b"x", data + b" " * 2**21, data.replace(b":", b":[", 1)))
    if rng.random() < 0.2:
        return bytes_changed(rng, data)
    document = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 3))):
        *path, last = rng.choice(paths_of(document)[1:] or [("new",)])
        holder = document
        for step in path:
            holder = holder[step]
        how = rng.randrange(5)
        if how == 0 and isinstance(holder, dict):
            holder[rng.choice(("new", "", last + "2", "../x"))] = _value(rng)
        elif how == 1:
            del holder[last]
        else:
            holder[last] = _value(rng)
    text = json.dumps(document)
    if rng.random() < 0.1 and isinstance(document, dict) and document:
        text = text[:-1] + ", " + json.dumps({rng.choice(list(document)): 1})[1:]
    return text.encode("utf-8", "surrogatepass")


def tensors_changed(rng: random.Random, data: bytes) -> bytes:
    """Return a safetensors file whose header lies, whose parts overlap, or that is none."""
    if rng.random() < 0.3:
        return bytes_changed(rng, data)
    length = struct.unpack("<Q", data[:8])[0]
    header, payload = json.loads(data[8 : 8 + length]), data[8 + length :]
    if rng.random() < 0.2:
        length = rng.choice((0, 1, length - 1, length + 1, len(data), 2**24, 2**31, 2**62, 2**64 - 1))
        return struct.pack("<Q", length) + data[8:]
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry, shape, (start, end) = header[name], header[name]["shape"], header[name]["data_offsets"]
    size = end - start
    how = rng.randrange(12)
    if how == 0:
        entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "PICKLE", "", 7, None))
    elif how == 1:
        entry["shape"] = rng.choice(([], [-1], [2**40] * 2, [0], shape[::-1], [*shape, 1], [1.0], "x", None, [2**63]))
    elif how == 2:
        lies = ([0, size], [start, 2**62], [end, start], [-8, size - 8], [start], [start + 1, end + 1], None, [0, "1"])
        entry["data_offsets"] = rng.choice(lies)
    elif how == 3:
        del header[name]
    elif how == 4:
        header[rng.choice((name + "2", "", "../x", "\ud800", "_orig_mod." + name))] = dict(entry)
    elif how == 5:
        header["__metadata__"] = _value(rng)
    elif how == 6:
        header |= {f"t{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(20_000)}
    elif how == 7:
        entry[rng.choice(("shape", "dtype", "more"))] = _value(rng)
    elif how == 8:
        payload = payload[: rng.randrange(len(payload))]
    elif how == 9:
        payload += bytes(rng.randrange(1, 100))
    elif how == 10:
        payload = payload[:start] + np.float32(rng.choice((np.nan, np.inf))).tobytes() * (size // 4) + payload[end:]
    text = json.dumps(header)
    if how == 11:
        text = text[:-1] + ", " + json.dumps({name: entry})[1:]
    written = rng.choice((text.encode("utf-8", "surrogatepass"),) * 9 + (json_changed(rng, text.encode()),))
    return struct.pack("<Q", len(written)) + written + payload


def png_of(width: int, height: int, *, chunks: bytes = b"", rows: int = 0) -> bytes:
    """Return a grey PNG that announces a size and holds so many of its rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(rows * (width + 1))))
    text = chunk(b"zTXt", b"t\0\0" + zlib.compress(chunks)) if chunks else b""
    return b"\x89PNG\r\n\x1a\n" + header + text + body + chunk(b"IEND", b"")


def odd_pictures() -> dict[str, tuple[bytes, bool]]:
    """Return pictures at the border of what is read, and whether each is."""
    good = pictures()
    bmp, gif, tiff = (
        next(content for name, content in good.items() if kind in name) for kind in ("bmp", "gif", "tiff")
    )
    huge = struct.pack("<II", 2**31 - 1, 2**31 - 1)
    odd = {name: (content, True) for name, content in good.items()}
    odd |= {
        "one pixel": (png_of(1, 1, rows=1), True),
        "16,384 x 1": (png_of(16_384, 1, rows=1), True),
        "65,500 x 1": (png_of(65_500, 1, rows=1), False),
        "1 x 65,500": (png_of(1, 65_500, rows=65_500), False),
        "60,000 x 60,000": (png_of(60_000, 60_000), False),
        "2**31 x 2**31": (png_of(2**31 - 1, 2**31 - 1), False),
        "8,193 x 8,193": (png_of(8193, 8193, rows=8193), False),
        "8,000 x 8,000, one row": (png_of(8000, 8000, rows=1), True),  # the decoder takes the rest to be zero
        "no width": (png_of(0, 5), False),
        "200 MB of text": (png_of(4, 4, rows=4, chunks=b"x" * (200 << 20)), False),
        "large bmp": (bmp[:18] + huge + bmp[26:], False),
        "large gif": (gif[:6] + b"\xff\xff\xff\xff" + gif[10:], False),
        "tiff of no end": (tiff[:4] + struct.pack("<I", 4) + tiff[8:], False),
        "nothing": (b"", False),
        "text": (b"this is no picture", False),
        "a zip": (b"PK\x03\x04" + bytes(60), False),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", False),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nsystem\n", False),
        "heic": (b"\0\0\0\x18ftypheic" + bytes(90), False),
        "a pickle": (b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.", False),
    }
    odd |= {f"{name}, half": (content[: len(content) // 2], False) for name, content in good.items()}
    odd |= {f"{name}, its start": (content[:12], False) for name, content in good.items()}
    return odd
