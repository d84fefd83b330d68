"""Codec, codes, data and prior that do not belong together are refused, whichever two are joined."""

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vq_prior.cli import main
from vq_prior.core.disk.code_store import INDEX, CodeStore, shard_bytes, write_index
from vq_prior.core.identity import file_sha256

STEPS = ["--steps", "2", "--batch-size", "8"]


def run(*words: object) -> None:
    assert main([*map(str, words)]) == 0


@pytest.fixture
def refused(capsys):
    """Run a command that must fail, and return its one line."""

    def refused(code, *words):
        capsys.readouterr()
        assert main([*map(str, words)]) == code
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return refused


@pytest.fixture(scope="module")
def roads(tmp_path_factory) -> list[Path]:
    """Three RUNs with codec, codes and prior that differ in nothing but the seed of the codec."""
    folder = tmp_path_factory.mktemp("roads")
    for seed in range(3):
        out = folder / str(seed)
        run("train-vqvae", "--data", "digits", "--out", out, *STEPS, "--seed", seed)
        run("extract-codes", "--codec", out, "--data", "digits", "--out", out / "codes")
        run("train-prior", "--codes", out / "codes", "--out", out, *STEPS)
    return [folder / str(seed) for seed in range(3)]


@pytest.mark.fault("F30", "F32", "R10")
def test_parts_of_other_roads_are_refused_with_both_ids(roads, refused, tmp_path, faults):
    ids = [CodeStore.open(road / "codes").index.codec.id[:12] for road in roads]
    assert len(set(ids)) == 3
    pairs = list(itertools.permutations(range(3), 2))
    for one, other in pairs:
        codec, codes, prior = roads[one] / "vqvae", roads[other] / "codes", roads[other] / "prior"
        mixed = tmp_path / f"mixed {one} {other}"
        shutil.copytree(codec, mixed / "vqvae")
        shutil.copytree(prior, mixed / "prior")
        out = tmp_path / "out"
        for words in (
            ("train-prior", "--codes", codes, "--codec", codec, "--out", out, *STEPS),
            ("train-prior", "--codes", roads[one] / "codes", "--from", prior, "--out", out, *STEPS),
            ("assemble", "--codec", codec, "--prior", prior, "--out", out),
            ("verify", codes, "--codec", codec),
        ):
            line = refused(3, *words)
            assert all(name in line for name in (ids[one], ids[other])), line
            assert not out.exists()
        run("assemble", "--codec", roads[other], "--prior", prior, "--out", tmp_path / "whole", "--overwrite")
        shutil.rmtree(tmp_path / "whole" / "vqvae")
        shutil.copytree(codec, tmp_path / "whole" / "vqvae")
        line = refused(3, "generate", "--model", tmp_path / "whole", "--num-images", 1, "--out", out)
        assert all(name in line for name in (ids[one], ids[other])), line
        assert not out.exists()
    faults.planted(5 * len(pairs))


@pytest.mark.fault("F26")
def test_codes_are_those_that_the_codec_gives_again(roads, refused, tmp_path, capsys):
    run("verify", roads[0] / "codes", "--codec", roads[0])
    assert "codes agree" in capsys.readouterr().out
    other = Path(shutil.copytree(roads[0] / "codes", tmp_path / "codes"))
    store = CodeStore.open(other)
    rows = store.rows(np.arange(len(store)))
    rows["codes.0"][::2] = np.roll(rows["codes.0"][::2], 1, axis=-1)  # as an encoder of another mode might
    shard = store.index.shards[0]
    (other / shard.file).write_bytes(shard_bytes(store.index.columns, rows))
    sealed = replace(shard, sha256=file_sha256(other / shard.file))
    write_index(other, replace(store.index, shards=(sealed, *store.index.shards[1:])))
    run("verify", other)
    assert "are not those that" in refused(3, "verify", other, "--codec", roads[0])


@pytest.mark.fault("F26")
def test_codes_do_not_depend_on_the_mode_that_a_codec_was_left_in(roads):
    import torch

    from stage1_vqvae.codecs import open_codec

    codec = open_codec(roads[0])
    # None of our own layers looks at its mode; those of a codec from elsewhere may.
    codec.encoder.register_forward_hook(lambda part, _, z: torch.nn.functional.dropout(z, 0.5, part.training))
    images = torch.rand(16, codec.spec.channels, *codec.spec.shape) * 2 - 1
    expected = codec.encode(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = codec.train().encode(images)
    assert all(torch.equal(one, other) for one, other in zip(given, expected, strict=True))


@pytest.mark.fault("F27")
def test_two_shards_that_changed_their_names_are_found(tiny_run, many_digits, refused, tmp_path):
    codes = tmp_path / "codes"
    run("extract-codes", "--codec", tiny_run, "--data", many_digits, "--out", codes)
    one, other = (codes / "train" / f"shard-0000{number}.safetensors" for number in (0, 1))
    for source, target in ((one, codes / "third"), (other, one), (codes / "third", other)):
        source.rename(target)
    line = refused(3, "train-prior", "--codes", codes, "--out", tmp_path / "run", *STEPS)
    assert "shard-00000" in line
    assert not (tmp_path / "run").exists()


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Forty pictures of two classes."""
    rng = np.random.default_rng(0)
    for number in range(40):
        folder = tmp_path / "pictures" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{number:02d}.png")
    return tmp_path / "pictures"


@pytest.mark.fault("F29", "F31")
@pytest.mark.parametrize("change", ["a file more", "a file less", "other pixels", "classes swapped"])
def test_data_that_changed_since_are_refused(change, pictures, refused, tmp_path):
    out = tmp_path / "run"
    run("train-vqvae", "--data", pictures, "--out", out, *STEPS)
    run("extract-codes", "--codec", out, "--data", pictures, "--out", out / "codes")
    victim = pictures / "cat" / "00.png"
    if change == "a file more":
        shutil.copyfile(victim, pictures / "cat" / "99.png")
    elif change == "a file less":
        victim.unlink()
    elif change == "other pixels":
        Image.new("L", (8, 8), 7).save(victim)
    else:
        for source, target in (("cat", "other"), ("dog", "cat"), ("other", "dog")):
            (pictures / source).rename(pictures / target)
    line = refused(3, "verify", out / "codes", "--codec", out, "--data", pictures)
    assert "is not the data of" in line
    line = refused(2, "train-vqvae", "--data", pictures, "--out", out, "--steps", 4, "--batch-size", 8)
    assert "the content of data" in line
    line = refused(2, "extract-codes", "--codec", out, "--data", pictures, "--out", out / "codes")
    assert "other data" in line


@pytest.mark.fault("F31")
@pytest.mark.parametrize("change", ["out of range", "no names", "no column"])
def test_labels_that_contradict_their_index_are_refused(change, tiny_run, refused, tmp_path):
    codes = Path(shutil.copytree(tiny_run / "codes", tmp_path / "codes"))
    store = CodeStore.open(codes)
    index, shard = store.index, store.index.shards[0]
    rows = store.rows(np.arange(len(store)))
    if change == "out of range":
        rows["label"][5] = len(index.label_names)
    elif change == "no names":
        index = replace(index, label_names=())
    else:
        rows.pop("label")
    columns = tuple(column for column in index.columns if column.name in rows)
    (codes / shard.file).write_bytes(shard_bytes(columns, rows))
    sealed = replace(shard, sha256=file_sha256(codes / shard.file))
    write_index(codes, replace(index, shards=(sealed, *index.shards[1:])))
    line = refused(3, "train-prior", "--codes", codes, "--out", tmp_path / "run", *STEPS)
    assert "label" in line or INDEX in line
    assert not (tmp_path / "run").exists()
