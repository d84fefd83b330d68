import pytest

from vq_prior.core.config import from_json, to_json
from vq_prior.core.errors import ArtifactError
from vq_prior.core.spec import CodeSpec, LevelSpec


def test_tokens_are_counted_over_all_levels():
    spec = CodeSpec(3, (64, 48), (LevelSpec((4, 3), 512), LevelSpec((8, 6), 1024)))
    assert (spec.rank, spec.num_tokens) == (2, 12 + 48)


def test_a_spec_survives_json():
    spec = CodeSpec(1, (16, 16, 8), (LevelSpec((4, 4, 2), 10),))
    assert from_json(CodeSpec, to_json(spec), "x") == spec


def test_an_axis_may_be_an_hour_of_sound():
    assert CodeSpec(1, (48_000 * 3600,), (LevelSpec((540_000,), 1024),)).num_tokens == 540_000


@pytest.mark.parametrize(
    ("channels", "shape", "levels", "message"),
    [
        (3, (), (LevelSpec((), 2),), "1 to 3 axes"),
        (3, (8, 8, 8, 8), (LevelSpec((1, 1, 1, 1), 2),), "1 to 3 axes"),
        (3, (8, 8), (), "1 to 64 levels, got 0"),
        (3, (8, 8), (LevelSpec((1, 1), 2),) * 65, "1 to 64 levels, got 65"),
        (0, (8, 8), (LevelSpec((1, 1), 2),), "channels must be between .* got 0"),
        (3, (8, 10**9), (LevelSpec((1, 1), 2),), "shape must be between .* got 1000000000"),
        (
            3,
            (2**14, 2**14),
            (LevelSpec((1, 1), 2),),
            r"shape \[16384, 16384\] times 3 channels are more than 268435456",
        ),
        (3, (8, 8), (LevelSpec((8,), 2),), r"levels\[0\]\.grid must have 2 axes like the data, got \[8\]"),
        (3, (8, 8), (LevelSpec((4, 0), 2),), r"levels\[0\]\.grid must be between"),
        (3, (8, 8), (LevelSpec((4, 4), 2), LevelSpec((4, 4), 0)), r"levels\[1\]\.num_codes .* got 0"),
        (3, (8, 8), (LevelSpec((4, 4), 2**31),), r"num_codes .* got 2147483648"),
        (3, (8, 8), (LevelSpec((65_536, 65_536), 2),), "4294967296 tokens, more than"),
    ],
)
def test_a_size_beyond_reason_is_refused_with_its_value(channels, shape, levels, message):
    with pytest.raises(ArtifactError, match=message):
        CodeSpec(channels, shape, levels)


def test_no_file_asks_which_class_a_codec_is_of_but_the_one_that_opens_them():
    import re
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    files = [path for name in ("vq_prior", "stage1_vqvae", "stage2_prior") for path in (root / name).rglob("*.py")]
    asked = re.compile(r"isinstance\([^()]*\b(VQVAE|ForeignCodec)\b")
    found = {path.relative_to(root).as_posix() for path in files if asked.search(path.read_text(encoding="utf-8"))}
    assert found == {"stage1_vqvae/codecs.py"}
