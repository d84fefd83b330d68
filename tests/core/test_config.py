import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vq_prior.core.config import MAX_DEPTH, canonical_json, from_json, parse_json, pretty_json, read_json, to_json
from vq_prior.core.disk.artifacts import write_manifest
from vq_prior.core.disk.code_store import CodeIndex
from vq_prior.core.errors import ArtifactError
from vq_prior.core.spec import CodeSpec
from vq_prior.core.training.runs import RunConfig


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int
    rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner
    sizes: tuple[int, ...]
    pair: tuple[int, str] = (1, "a")
    mode: Literal["l1", "mse"] = "mse"
    order: Literal[0, 1] = 0
    top_k: int | None = None
    path: Path | None = None
    flag: bool = False
    extra: dict[str, float] = dataclasses.field(default_factory=dict)
    names: list[str] = dataclasses.field(default_factory=list)


GOOD = {"name": "x", "inner": {"width": 3}, "sizes": [1, 2]}

REFUSED_TEXT = [
    (b'{"a": NaN}', "NaN"),
    (b'{"a": Infinity}', "Infinity"),
    (b'{"a": -Infinity}', "-Infinity"),
    (b'{"a": 1e999}', "1e999"),
    (b'{"a": -1e999}', "-1e999"),
    (b'{"a": 1, "a": 2}', "'a' appears twice"),
    (b'{"b": {"a": 1, "a": 1}}', "'a' appears twice"),
    (b'\xef\xbb\xbf{"a": 1}', "BOM"),
    (b'{"a": "\\ud800"}', "UTF-8"),
    (b'{"\\udfff": 1}', "UTF-8"),
    (b'["\\uDBFF"]', "UTF-8"),
    (b'"\xff"', "UTF-8"),
    (b'"\xed\xa0\x80"', "UTF-8"),
    (b"[9223372036854775808]", "out of range"),
    (b"1" * 5000, "out of range"),
    (b'["\\ud83d\\ude00", ' + b"1" * 5000 + b"]", "out of range"),
    (b"[" * 65 + b"]" * 65, "deeply"),
    (b"[" * 200_000, "deeply"),
    (b'{"a":' * 200_000, "deeply"),
    (b"[" * 200_000 + b"]" * 200_000, "deeply"),
    (b"", "not valid JSON"),
    (b"{", "not valid JSON"),
    (b"{} {}", "not valid JSON"),
    (b"{'a': 1}", "not valid JSON"),
    (b'{"a": 1,}', "not valid JSON"),
    (b'"\x00"', "not valid JSON"),
    (b'{"a": 1} // note', "not valid JSON"),
]


@pytest.mark.parametrize(("data", "reason"), REFUSED_TEXT, ids=lambda value: repr(value)[:24])
def test_text_that_json_does_not_allow_is_refused_with_its_reason(data, reason):
    with pytest.raises(ArtifactError, match=reason) as caught:
        parse_json(data, "here.json")
    assert str(caught.value).startswith("here.json: ")


def test_nesting_up_to_the_limit_and_paired_surrogates_are_read():
    assert parse_json(b"[" * (MAX_DEPTH - 1) + b"1" + b"]" * (MAX_DEPTH - 1), "x") is not None
    assert parse_json(b'"\\ud83d\\ude00"', "x") == "\U0001f600"
    assert parse_json(b'"\\\\ud800"', "x") == "\\ud800"  # an escaped backslash, no surrogate


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Cs are the surrogates, which no UTF-8 file can hold.
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(json_values)
def test_every_json_value_survives_writing_and_reading(value):
    assert parse_json(pretty_json(value), "x") == value
    assert parse_json(canonical_json(value), "x") == value


@settings(max_examples=400)
@given(st.binary(max_size=64) | st.text(alphabet='[]{}",:\\ud8eE+-.0129tfn NaI\n', max_size=48).map(str.encode))
def test_bytes_of_any_kind_are_a_value_or_an_artifact_error(data):
    try:
        value = parse_json(data, "x")
    except ArtifactError:
        return
    assert value == json.loads(data)


@settings(max_examples=300)
@given(json_values, st.sampled_from([Outer, CodeSpec, CodeIndex, RunConfig]))
def test_values_of_any_kind_are_a_dataclass_or_an_artifact_error(value, cls):
    try:
        result = from_json(cls, value, "x")
    except ArtifactError as error:
        assert str(error).startswith(("x", "spec"))  # noqa: PT017 -- both outcomes are allowed
        return
    assert isinstance(result, cls)


@settings(max_examples=300)
@given(st.sampled_from([field.name for field in dataclasses.fields(Outer)]), json_values)
def test_a_key_of_the_wrong_type_is_named(key, value):
    document = GOOD | {key: value}
    try:
        result = from_json(Outer, document, "x")
    except ArtifactError as error:
        assert f"x.{key}" in str(error)  # noqa: PT017
        return
    assert to_json(getattr(result, key)) == to_json(getattr(from_json(Outer, to_json(result), "x"), key))


WRONG_VALUES = [
    ({"sizes": [1, 2.0]}, r"x\.sizes\[1\] must be an integer, got 2\.0"),
    ({"sizes": "12"}, r"x\.sizes must be a list"),
    ({"inner": {"width": True}}, r"x\.inner\.width must be an integer, got true"),
    ({"inner": {"width": 1, "rate": False}}, r"x\.inner\.rate must be a number, got false"),
    ({"inner": {"width": 1, "depth": 2}}, r"x\.inner has an unknown key 'depth'; allowed: width, rate"),
    ({"inner": {}}, r"x\.inner lacks the key 'width'"),
    ({"inner": None}, r"x\.inner must be an object, got null"),
    ({"name": 5}, r"x\.name must be a string, got 5"),
    ({"pair": [1]}, r"x\.pair must have 2 entries, got 1"),
    ({"mode": "l2"}, r"x\.mode must be one of l1, mse, got 'l2'"),
    ({"mode": ["l1"]}, r"x\.mode must be one of"),
    ({"order": True}, r"x\.order must be one of 0, 1, got True"),
    ({"order": 1.0}, r"x\.order must be one of 0, 1, got 1\.0"),
    ({"top_k": "3"}, r"x\.top_k must be an integer"),
    ({"flag": 1}, r"x\.flag must be true or false, got 1"),
    ({"extra": {"a": "b"}}, r"x\.extra\.a must be a number"),
    ({"names": [1]}, r"x\.names\[0\] must be a string"),
    ({"nmae": "y"}, r"x has an unknown key 'nmae'"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_VALUES)
def test_a_wrong_value_is_refused_with_its_key(change, message):
    with pytest.raises(ArtifactError, match=message):
        from_json(Outer, GOOD | change, "x")


@pytest.mark.parametrize("missing", ["name", "inner", "sizes"])
def test_a_missing_key_is_named(missing):
    document = {key: value for key, value in GOOD.items() if key != missing}
    with pytest.raises(ArtifactError, match=f"x lacks the key '{missing}'"):
        from_json(Outer, document, "x")


def test_an_integer_is_a_valid_float_and_becomes_one():
    rate = from_json(Inner, {"width": 1, "rate": 2}, "x").rate
    assert type(rate) is float


def test_settings_survive_the_round_trip_through_a_file(tmp_path):
    before = Outer("é", Inner(3, 1e-5), (1, 2), (2, "b"), "l1", 1, 7, Path("a/b"), True, {"k": 1.5}, ["n"])
    (tmp_path / "x.json").write_bytes(pretty_json(before))
    assert from_json(Outer, read_json(tmp_path / "x.json"), "x") == before


def test_a_file_beyond_the_size_limit_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "big.json"
    path.write_bytes(b" " * (1 << 20) + b"{}")
    with pytest.raises(ArtifactError, match="1048578 bytes, more than the 1048576"):
        read_json(path)
    assert read_json(path, max_bytes=1 << 21) == {}


def test_a_path_that_holds_no_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="is missing"):
        read_json(tmp_path / "none.json")
    with pytest.raises(ArtifactError, match="is not a file"):
        read_json(tmp_path)
    (tmp_path / "inside").write_text("")
    with pytest.raises(ArtifactError, match=r"missing|cannot be read"):
        read_json(tmp_path / "inside" / "x.json")


def test_canonical_json_is_one_string_whatever_the_order_of_keys():
    assert canonical_json({"b": (1, 2), "a": "é"}) == b'{"a":"\\u00e9","b":[1,2]}'
    assert canonical_json({"a": "é", "b": [1, 2]}) == canonical_json({"b": (1, 2), "a": "é"})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_lacks_is_never_written(value):
    for write in (pretty_json, canonical_json):
        with pytest.raises(ValueError, match="JSON"):
            write({"a": value})


def test_dataclasses_tuples_and_paths_become_plain_json():
    plain: Any = to_json(Outer("x", Inner(1), (2,), path=Path("a")))
    assert plain["inner"] == {"width": 1, "rate": 0.5}
    assert plain["sizes"] == [2]
    assert plain["path"] == "a"


def test_the_largest_manifest_of_a_component_stays_below_the_limit(tmp_path):
    for number in range(100):
        (tmp_path / f"model-{number:05d}-of-00100.safetensors").write_bytes(b"x")
    write_manifest(tmp_path)
    assert len(read_json(tmp_path / "manifest.json")["files"]) == 100
