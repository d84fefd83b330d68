import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vq_prior.core.disk.tensors import DTYPES, MAX_TENSORS, read_header, read_tensors, write_tensors
from vq_prior.core.errors import ArtifactError

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(path, header, payload=b"\0" * 8):
    """Write a safetensors file from a header, as an object or as raw bytes."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(data)) + data + payload)
    return path


def entry(**changes):
    return {"a": F32 | changes}


MALFORMED = {
    "not an object": b"[1]",
    "not json": b"{a}",
    "not utf-8": b'{"\xff": 1}',
    "nan": b'{"a": NaN}',
    "deep": b'{"a":' * 100 + b"1" + b"}" * 100,
    "duplicate tensor": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
    ),
    "entry is a list": {"a": [1]},
    "entry is null": {"a": None},
    "missing key": {"a": {"dtype": "F32", "shape": [2]}},
    "extra key": entry(note=1),
    "unknown dtype": entry(dtype="F128"),
    "dtype is a list": entry(dtype=["F32"]),
    "dtype is null": entry(dtype=None),
    "dtype of another size": entry(dtype="F64"),
    "shape is a number": entry(shape=2),
    "shape is a string": entry(shape="2"),
    "shape holds a float": entry(shape=[2.0]),
    "shape holds a bool": entry(shape=[2, True]),
    "negative shape": entry(shape=[-2]),
    "two negative axes": entry(shape=[-2, -1]),
    "shape bomb": entry(shape=[2**62, 2**62, 2**62]),
    "shape bomb of many axes": entry(shape=[1] * 9 + [2]),
    "shape too large": entry(shape=[3]),
    "offsets are a number": entry(data_offsets=8),
    "one offset": entry(data_offsets=[8]),
    "three offsets": entry(data_offsets=[0, 8, 8]),
    "negative offset": entry(data_offsets=[-8, 0]),
    "reversed offsets": entry(data_offsets=[8, 0]),
    "offsets beyond the file": entry(data_offsets=[8, 16]),
    "huge offset": entry(shape=[2**60], data_offsets=[0, 2**62]),
    "overlap": {"a": F32, "b": F32},
    "partial overlap": {"a": F32, "b": F32 | {"shape": [1], "data_offsets": [4, 8]}},
    "gap": {"a": F32 | {"shape": [1], "data_offsets": [4, 8]}},
    "bytes left over": {"a": F32 | {"shape": [1], "data_offsets": [0, 4]}},
    "metadata is a number": {"__metadata__": 5, "a": F32},
    "metadata holds a number": {"__metadata__": {"format": 5}, "a": F32},
}


@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_header_is_refused_before_the_payload_is_read(tmp_path, header):
    path = file_of(tmp_path / "x.safetensors", header)
    with pytest.raises(ArtifactError, match=r"x\.safetensors"):
        read_tensors(path)


@pytest.mark.parametrize("length", [0, 1, 2**24 + 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_length_beyond_reason_is_refused(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        read_header(path)


def test_more_tensors_than_any_model_has_are_refused(tmp_path):
    empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = {f"t{n}": empty for n in range(MAX_TENSORS)}
    assert len(read_header(file_of(tmp_path / "x.safetensors", header, b""))) == MAX_TENSORS
    with pytest.raises(ArtifactError, match=f"more than {MAX_TENSORS} tensors"):
        read_header(file_of(tmp_path / "x.safetensors", header | {"one": empty}, b""))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(ArtifactError, match="cannot be read"):
            read_header(path)


def real_tensors():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t.{name}": torch.randint(0, 2, (2, 3), generator=generator).to(kind) for name, kind in DTYPES.items()}
    return tensors | {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "empty2": torch.zeros(3, 0)}


def test_tensors_of_every_kind_survive_the_round_trip(tmp_path):
    tensors = real_tensors()
    write_tensors(tmp_path / "x", tensors)
    header = read_header(tmp_path / "x")
    read = read_tensors(tmp_path / "x")
    assert read.keys() == header.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == header[name].dtype == tensor.dtype
        assert read[name].shape == header[name].shape == tensor.shape
        assert torch.equal(read[name].to(torch.float64), tensor.to(torch.float64))


def test_the_same_tensors_give_the_same_bytes_whatever_their_order(tmp_path):
    tensors = real_tensors()
    write_tensors(tmp_path / "first", tensors)
    write_tensors(tmp_path / "second", dict(reversed(tensors.items())))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_every_truncation_of_a_real_file_is_refused(tmp_path):
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3)})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError):
            read_header(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ArtifactError):
        read_header(path)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mutated_file_is_read_or_refused_and_nothing_else(tmp_path, data):
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3)})
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        tensors = read_tensors(path)
    except ArtifactError:
        return
    header_bytes = struct.unpack("<Q", damaged[:8])[0]
    assert sum(tensor.nbytes for tensor in tensors.values()) == len(damaged) - 8 - header_bytes


def test_names_and_shapes_must_be_those_expected(tmp_path):
    path = tmp_path / "x"
    write_tensors(path, {"a": torch.zeros(2, 3)})
    meta = torch.zeros(2, 3, device="meta")
    assert read_tensors(path, {"a": meta}).keys() == {"a"}
    with pytest.raises(ArtifactError, match="lacks tensor 'b'"):
        read_tensors(path, {"a": meta, "b": meta})
    with pytest.raises(ArtifactError, match="has an unknown tensor 'a'"):
        read_tensors(path, {})
    with pytest.raises(ArtifactError, match=r"'a' has shape \[2, 3\], its config \[3, 2\]"):
        read_tensors(path, {"a": meta.T})
