"""File names that are not UTF-8: on disk a name is bytes, and Python keeps each byte that it cannot read as half a
character.
"""

import re

HALVES = re.compile("[\ud800-\udfff]")
ESCAPED = re.compile(r"\\x([89a-f][0-9a-f])")


def readable(text: str) -> str:
    r"""Return a name as text that every file and terminal takes: `\xNN` for each byte that is no UTF-8.

    >>> readable("café"), readable("caf\udce9")
    ('café', 'caf\\xe9')
    """
    return text if text.isascii() else HALVES.sub(_escaped, text)


def _escaped(half: "re.Match[str]") -> str:
    number = ord(half[0])
    return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else f"\\u{number:04x}"


def as_on_disk(text: str) -> str:
    r"""Return the name that `readable` was given, as the system takes it.

    >>> as_on_disk(readable("caf\udce9")) == "caf\udce9"
    True
    """
    return ESCAPED.sub(lambda escaped: chr(0xDC00 + int(escaped[1], 16)), text)
