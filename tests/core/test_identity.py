import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vq_prior.core.errors import ArtifactError
from vq_prior.core.identity import content_id, file_sha256, require_same_codec

CONFIG = {"width": 64, "grid": [8, 8]}


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {"b": torch.randn(3, 4, generator=generator), "a": torch.arange(6, dtype=torch.int32).view(2, 3)}


def test_the_id_of_a_known_content_never_changes():
    expected = hashlib.sha256(b'{"k":1}')
    expected.update(b'["a","int32",[2]]' + b"\x01\0\0\0\xff\xff\xff\xff")
    expected.update(b'["z","float32",[]]' + b"\0\0\x80\x3f")
    known = {"z": torch.tensor(1.0), "a": torch.tensor([1, -1], dtype=torch.int32)}
    assert content_id({"k": 1}, known) == expected.hexdigest()


def test_order_and_memory_layout_do_not_matter():
    first = tensors()
    strided = {"a": first["a"].T.contiguous().T, "b": torch.stack([first["b"], first["b"]], dim=-1)[..., 0]}
    assert not strided["b"].is_contiguous()
    assert content_id(CONFIG, first) == content_id(dict(reversed(CONFIG.items())), strided)


@given(st.integers(0, 12 * 4 - 1), st.integers(0, 7))
def test_one_flipped_bit_gives_another_id(position, bit):
    changed = tensors()
    changed["b"].view(torch.uint8).view(-1)[position] ^= 1 << bit
    assert content_id(CONFIG, changed) != content_id(CONFIG, tensors())


def test_dtype_shape_name_and_config_all_enter():
    first = tensors()
    others = [
        (CONFIG | {"width": 65}, first),
        (CONFIG, first | {"a": first["a"].view(3, 2)}),
        (CONFIG, first | {"a": first["a"].view(torch.float32)}),
        (CONFIG, {"b": first["b"], "c": first["a"]}),
        (CONFIG, {"b": first["b"]}),
        (CONFIG, first | {"c": torch.zeros(0)}),
    ]
    assert len({content_id(*pair) for pair in [(CONFIG, first), *others]}) == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.bool, torch.uint16, torch.int64])
def test_tensors_of_every_kind_have_an_id(dtype):
    assert len(content_id({}, {"a": torch.ones(3).to(dtype)})) == 64


def test_a_file_is_hashed_whole(tmp_path):
    data = bytes(range(256)) * 10_000  # more than one block
    (tmp_path / "x").write_bytes(data)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def test_a_stranger_is_refused_with_both_ids():
    require_same_codec("the prior", "a" * 64, "the codes", "a" * 64)
    with pytest.raises(ArtifactError, match=f"the prior belongs to codec {'a' * 64}, the codes to codec {'b' * 64}"):
        require_same_codec("the prior", "a" * 64, "the codes", "b" * 64)
