"""Reading and writing JSON strictly, and typed dataclasses from it.

What comes from a file is never trusted: unknown keys, missing keys, duplicate
keys, NaN, wrong types and absurd sizes are errors that name the key.
"""

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from vq_prior.core.disk.names import readable
from vq_prior.core.disk.pointers import is_pointer, pointer_text
from vq_prior.core.errors import ArtifactError

MAX_JSON_BYTES = 1 << 20
MAX_INTEGER = 2**63 - 1
MAX_DEPTH = 64
MAX_VALUES, MAX_CONTAINERS = 1 << 21, 1 << 18  # 20 MB of `[],` would take 500 MB

T = TypeVar("T")


def parse_json(data: bytes, where: str) -> Any:
    """Return the value of a JSON document.

    Args:
        data: UTF-8 bytes without a byte-order mark.
        where: Name of the document for messages.

    Raises:
        ArtifactError: On bad UTF-8 or syntax, duplicate keys, NaN or infinity, integers beyond 64 bits,
            lone surrogates, nesting too deep or too many values.
    """

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in pairs:
            if key in result:
                raise ArtifactError(f"{where}: key {key!r} appears twice")
            result[key] = value
        return result

    def constant(text: str) -> Any:
        raise ArtifactError(f"{where}: {text} is not a number that JSON allows")

    def real(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else constant(text)

    def integer(text: str) -> int:
        if len(text) > 20 or abs(int(text)) > MAX_INTEGER:
            raise ArtifactError(f"{where}: integer {text[:24]} is out of range")
        return int(text)

    if data.count(b",") > MAX_VALUES or data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
        raise ArtifactError(f"{where}: holds more values than any file of ours")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=object_of,
            parse_constant=constant,
            parse_float=real,
            parse_int=integer,
        )
        _check_text_and_depth(value)
        return value
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise ArtifactError(f"{where}: not valid UTF-8 text") from error
    except RecursionError as error:
        raise ArtifactError(f"{where}: nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ArtifactError(f"{where}: not valid JSON ({error.msg} at line {error.lineno})") from error


def _check_text_and_depth(value: Any) -> None:
    """Raise `UnicodeError` on a lone surrogate and `RecursionError` beyond `MAX_DEPTH` levels."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode("utf-8")
            elif isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
        level = inner
    if level:
        raise RecursionError


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return the value of a JSON file; see `parse_json`.

    Raises:
        ArtifactError: Also if the file is missing, not a regular file, or larger than `max_bytes`.
    """
    try:
        if not path.is_file():
            raise ArtifactError(f"{path} is missing" if not path.exists() else f"{path} is not a file")
        size = path.stat().st_size
        if size > max_bytes:
            raise ArtifactError(f"{path} has {size} bytes, more than the {max_bytes} allowed")
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    if is_pointer(data):
        raise ArtifactError(pointer_text(str(path)))
    return parse_json(data, str(path))


def to_json(value: Any) -> Any:
    """Return plain JSON values (dicts, lists, numbers, strings) of dataclasses, tuples and paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def pretty_json(value: Any) -> bytes:
    """Return indented UTF-8 JSON that ends in a newline; the same value gives the same bytes.

    A name that is no UTF-8 is written as `readable` gives it.
    """
    plain = to_json(value)
    try:
        return _indented(plain)
    except UnicodeEncodeError:
        return _indented(_readable(plain))


def _indented(plain: Any) -> bytes:
    return (json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def _readable(plain: Any) -> Any:
    """Return JSON values with every text in them as `readable` gives it."""
    if isinstance(plain, str):
        return readable(plain)
    if isinstance(plain, dict):
        return {readable(key): _readable(item) for key, item in plain.items()}
    return [_readable(item) for item in plain] if isinstance(plain, list) else plain


def canonical_json(value: Any) -> bytes:
    """Return the one byte string of a JSON value that hashes are taken over: sorted keys, no spaces, ASCII."""
    return json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def from_json(cls: type[T], value: Any, where: str) -> T:
    """Return an instance of the dataclass `cls` from parsed JSON.

    Fields without a default must be present, unknown keys are refused, and
    every value must have its field's type (an integer is a valid float, a
    boolean is never a number).

    Raises:
        ArtifactError: Naming the key, what was given and what is allowed.
    """
    result = _convert(cls, value, where)
    assert isinstance(result, cls)
    return result


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is typing.Annotated:
        return _convert(arguments[0], value, where)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if origin is typing.Literal:
        if not any(type(value) is type(item) and value == item for item in arguments):
            raise ArtifactError(f"{where} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(kind, value, where)
    if origin is tuple:
        return _convert_tuple(arguments, value, where)
    if origin is list:
        return list(_convert_tuple((arguments[0], ...), value, where))
    if origin is dict:
        if not isinstance(value, dict):
            raise ArtifactError(f"{where} must be an object, got {_kind_of(value)}")
        return {key: _convert(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        name = {type(None): "null", int: "an integer", float: "a number", str: "a string", bool: "true or false"}
        raise ArtifactError(f"{where} must be {name.get(kind, kind)}, got {_kind_of(value)}")
    return value


def _kind_of(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _convert_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    failures = []
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return _convert(kind, value, where)
        except ArtifactError as error:
            failures.append(error)
    raise failures[0]


def _convert_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ArtifactError(f"{where} must be a list, got {_kind_of(value)}")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        kinds: tuple[Any, ...] = (arguments[0],) * len(value)
    else:
        kinds = arguments
    if len(kinds) != len(value):
        raise ArtifactError(f"{where} must have {len(kinds)} entries, got {len(value)}")
    return tuple(_convert(kind, item, f"{where}[{n}]") for n, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _convert_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ArtifactError(f"{where} must be an object, got {_kind_of(value)}")
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for key in value:
        if key not in fields:
            raise ArtifactError(f"{where} has an unknown key {key!r}; allowed: {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise ArtifactError(f"{where} lacks the key {name!r}")
    return kind(**{name: _convert(hints[name], item, f"{where}.{name}") for name, item in value.items()})
