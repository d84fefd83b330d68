"""Pictures keep the contract of a kind of data, and the table that tells kinds says what it should."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1_vqvae.data.sources import open_data
from stage1_vqvae.modalities import kinds_of_array, kinds_of_suffix
from stage1_vqvae.modalities.pictures import PICTURES
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.testing import check_modality


def png(height: int, width: int, channels: int) -> bytes:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, channels), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, format="PNG")
    return file.getvalue()


def test_pictures_pass_the_suite_of_own_kinds() -> None:
    check_modality(PICTURES, [png(16, 16, 3), png(16, 16, 1), png(16, 16, 3), png(20, 12, 3)])


@pytest.mark.parametrize(
    ("dtype", "shape", "kind"),
    [
        ("uint8", (9, 8, 8), "pictures"),
        ("uint8", (9, 8, 8, 4), "pictures"),
        ("uint8", (9, 8, 8, 5), "arrays"),
        ("float32", (9, 16), "vectors"),
        ("float64", (9, 16, 2), "series"),
        ("float32", (9, 8, 8, 3), "arrays"),
        ("int64", (9, 16), "arrays"),
    ],
)
def test_arrays_are_known_by_dtype_and_rank(dtype: str, shape: tuple[int, ...], kind: str) -> None:
    assert kinds_of_array(dtype, shape) == (kind,)


@pytest.mark.parametrize(("suffix", "kind"), [(".gif", "pictures"), (".wav", "sound"), (".mkv", "video")])
def test_files_are_known_by_suffix(suffix: str, kind: str) -> None:
    assert kinds_of_suffix(suffix) == (kind,)


def test_a_numpy_file_of_pictures_is_data(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "pictures.npy", pixels)
    np.savez(tmp_path / "pictures.npz", pixels=pixels, label=np.arange(40) % 2)
    one, other = (open_data(str(tmp_path / name)) for name in ("pictures.npy", "pictures.npz"))
    assert one.modality is PICTURES
    assert one.notes[0] == f"data {tmp_path / 'pictures.npy'}: pictures, uint8 [40, 8, 8]"
    assert (one.label_names, other.label_names) == ((), ("0", "1"))
    assert np.array_equal(one.train.encoded(0), pixels[one.train.source_index[0]])


def test_what_is_not_read_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds/a.wav").write_bytes(b"RIFF")
    with pytest.raises(ArtifactError, match=r"looks like sound \(1 wav files\); this version reads pictures"):
        open_data(str(tmp_path / "sounds"))
    np.save(tmp_path / "vectors.npy", np.zeros((9, 16), np.float32))
    with pytest.raises(ArtifactError, match=r"looks like vectors \(float32 \[9, 16\]\); this version reads pictures"):
        open_data(str(tmp_path / "vectors.npy"))
    np.save(tmp_path / "objects.npy", np.array([[{}], [[]]], dtype=object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="is not a readable numpy file"):
        open_data(str(tmp_path / "objects.npy"))


def test_the_kind_that_is_named_wins(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--modality must be one of pictures, got sound"):
        open_data(str(tmp_path), modality="sound")
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(ArtifactError, match="holds no images"):
        open_data(str(tmp_path), modality="pictures")


def test_a_table_of_sounds_is_refused_and_named(tmp_path: Path) -> None:
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"audio": pa.array([{"bytes": b"RIFF", "path": None}] * 4, kind)})
    features = {"info": {"features": {"audio": {"_type": "Audio"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "a.parquet")
    with pytest.raises(ArtifactError, match=r"looks like sound \(column audio\); this version reads pictures"):
        open_data(str(tmp_path / "a.parquet"))
