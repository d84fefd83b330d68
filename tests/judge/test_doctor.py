"""The doctor: what is well is called healthy, and each planted fault is called by its name."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from doctor_cases import Trainer, digit_folder, edited_codec, edited_prior, edited_store, overfit, verdict

from stage1_vqvae.codecs import open_codec
from stage1_vqvae.model import VQVAE
from stage2_prior.prior import SamplingDefaults
from vq_prior.cli import main
from vq_prior.core.disk.code_store import CodeStore, write_index
from vq_prior.core.spec import LevelSpec


def command(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return Trainer(command)


@pytest.fixture(scope="module")
def well(tmp_path_factory, trainer) -> Path:
    """A run on digits that is well; tests work on copies of its parts."""
    return trainer.whole(tmp_path_factory.mktemp("well") / "run", "digits")


def examined(tmp_path: Path, *words: object) -> tuple[int, list[str]]:
    """Return the doctor's exit code and the faults it names."""
    out = tmp_path / "doctor.json"
    code = main(["doctor", *map(str, words), "--out", str(out)])
    return code, verdict(out)


GOOD = {
    "fsq": ("--quantizer.name", "fsq"),
    "simvq": ("--quantizer.name", "simvq"),
    "longer": ("--image-size", "10x6"),
}


def test_a_run_that_is_well_is_healthy_whatever_is_named(well, tmp_path, capsys):
    for words in (
        ("--model", well / "model"),
        ("--codec", well),
        ("--codes", well / "codes"),
        ("--prior", well),
        ("--model", well / "model", "--codes", well / "codes", "--data", "digits"),
    ):
        assert examined(tmp_path, *words) == (0, []), words
        assert capsys.readouterr().out.splitlines()[-1].startswith("verdict: healthy")
    measured = json.loads((tmp_path / "doctor.json").read_text())["measured"]
    assert {"codec", "codes", "agreement", "labels", "prior", "samples", "estimates"} <= measured.keys()
    assert measured["prior"]["held_out_nats"] < measured["prior"]["previous_token"] < measured["prior"]["unigram"]
    assert len(measured["samples"]["nearest_training_row"]) == measured["samples"]["num_images"]


@pytest.mark.one_of("well")
@pytest.mark.parametrize("name", GOOD)
def test_other_runs_that_are_well_are_healthy(name, trainer, tmp_path):
    trainer.whole(tmp_path / "run", "digits", *GOOD[name])
    assert examined(tmp_path, "--model", tmp_path / "run" / "model") == (0, [])


@pytest.mark.one_of("well")
def test_a_run_without_labels_is_healthy(trainer, tmp_path):
    data = digit_folder(tmp_path / "pictures", count=1100, classes=False)
    trainer.whole(tmp_path / "run", str(data))
    assert examined(tmp_path, "--model", tmp_path / "run" / "model") == (0, [])


def test_a_collapsed_codebook_is_named_and_fails(well, tmp_path, capsys):
    def collapse(codec: VQVAE) -> None:
        codec.quantizer.codebook[3:] += 1000.0

    code, faults = examined(tmp_path, "--codec", edited_codec(well, tmp_path / "c", collapse), "--data", "digits")
    assert (code, faults[0]) == (4, "collapsed codebook")
    assert "3 of 128 codes in use" in capsys.readouterr().err


def test_a_collapsed_store_is_named_and_fails(well, tmp_path):
    def collapse(_split, rows):
        return rows | {"codes.0": rows["codes.0"] % 2}

    store = edited_store(well / "codes", tmp_path / "codes", collapse)
    assert examined(tmp_path, "--codes", store) == (4, ["collapsed codebook"])


def test_a_collapsed_store_fails_beside_a_codec_that_is_well(well, tmp_path):
    store = edited_store(well / "codes", tmp_path / "codes", lambda _, rows: rows | {"codes.0": rows["codes.0"] % 2})
    code, faults = examined(tmp_path, "--codes", store, "--codec", well, "--data", "digits")
    assert (code, faults) == (4, ["wrong codec", "collapsed codebook"])


def test_an_untrained_codec_is_named(well, tmp_path):
    def forget(codec: VQVAE) -> None:
        torch.manual_seed(0)
        codec.load_state_dict(VQVAE(codec.config).state_dict())

    _, faults = examined(tmp_path, "--codec", edited_codec(well, tmp_path / "c", forget), "--data", "digits")
    assert faults[0] == "codec not trained"


def test_a_decoder_of_another_codec_is_named(well, tmp_path):
    def forget(codec: VQVAE) -> None:
        torch.manual_seed(0)
        codec.decoder.load_state_dict(VQVAE(codec.config).decoder.state_dict())

    code, faults = examined(tmp_path, "--codec", edited_codec(well, tmp_path / "c", forget), "--data", "digits")
    assert (code, faults) == (0, ["codec not trained"])


def test_an_untrained_prior_is_named_and_fails(well, tmp_path):
    def forget(model: torch.nn.Module) -> None:
        torch.manual_seed(0)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02)

    prior = edited_prior(well / "prior", tmp_path / "p", forget)
    code, faults = examined(tmp_path, "--prior", prior, "--codes", well / "codes", "--codec", well)
    assert (code, faults[0]) == (4, "prior not trained")


@pytest.mark.one_of("overfitted")
def test_an_overfitted_prior_is_named(well, tmp_path):
    prior = overfit(well / "prior", tmp_path / "p", well / "codes", rows=300, steps=240)
    _, faults = examined(tmp_path, "--prior", prior, "--codes", well / "codes")
    assert faults[0] == "prior overfitted"


@pytest.mark.one_of("overfitted")
def test_a_memorised_set_is_named(well, tmp_path):
    prior = overfit(well / "prior", tmp_path / "p", well / "codes", rows=64, steps=240)
    _, faults = examined(tmp_path, "--prior", prior, "--codes", well / "codes", "--codec", well)
    assert faults[:2] == ["prior overfitted", "memorised training set"]


@pytest.fixture(scope="module")
def other_codec(trainer, tmp_path_factory) -> Path:
    return trainer.codec(tmp_path_factory.mktemp("other"), "digits", "--seed", 5, steps=150)


def test_the_codec_of_another_run_is_named(well, other_codec, tmp_path):
    _, faults = examined(tmp_path, "--prior", well / "prior", "--codes", well / "codes", "--codec", other_codec)
    assert faults[0] == "wrong codec"
    model = shutil.copytree(well / "model", tmp_path / "model")
    shutil.rmtree(model / "vqvae")
    shutil.copytree(other_codec / "vqvae", model / "vqvae")
    assert examined(tmp_path, "--model", model)[1][0] == "wrong codec"
    assert examined(tmp_path, "--model", model, "--data", "digits")[1][0] == "wrong codec"


def test_the_codec_of_another_run_under_a_false_name_is_named(well, other_codec, tmp_path):
    stranger = open_codec(other_codec).codec_id
    store = edited_store(well / "codes", tmp_path / "codes", lambda _split, rows: rows)
    index = CodeStore.open(store).index
    write_index(store, replace(index, codec=replace(index.codec, id=stranger)))
    _, faults = examined(tmp_path, "--codes", store, "--codec", other_codec, "--data", "digits")
    assert faults[0] == "wrong codec"
    prior = edited_prior(well / "prior", tmp_path / "p", lambda _model: None, codec_id=stranger)
    _, faults = examined(tmp_path, "--prior", prior, "--codec", other_codec, "--data", "digits")
    assert faults[0] == "wrong codec"


def test_shuffled_labels_are_named(well, tmp_path):
    def shuffle(split, rows):
        return rows | {"label": np.random.default_rng(len(split)).permutation(rows["label"])}

    store = edited_store(well / "codes", tmp_path / "codes", shuffle)
    assert examined(tmp_path, "--codes", store) == (0, ["labels shuffled"])
    command("train-prior", "--codes", store, "--out", tmp_path / "run", "--steps", 120)
    _, faults = examined(tmp_path, "--prior", tmp_path / "run", "--codes", well / "codes")
    assert faults == ["labels shuffled"]


def test_a_class_without_images_is_named(well, tmp_path):
    store = edited_store(well / "codes", tmp_path / "codes", lambda _split, rows: rows)
    index = CodeStore.open(store).index
    write_index(store, replace(index, label_names=(*index.label_names, "ten")))
    assert examined(tmp_path, "--codes", store) == (0, ["classes without images"])
    (finding,) = json.loads((tmp_path / "doctor.json").read_text())["findings"]
    assert finding["evidence"] == "1 of 11: ten"


def test_a_temperature_that_kills_variety_is_named(well, tmp_path):
    sampling = SamplingDefaults(temperature=0.05, guidance_scale=3.0)
    prior = edited_prior(well / "prior", tmp_path / "p", lambda _model: None, sampling=sampling)
    assert examined(tmp_path, "--prior", prior, "--codes", well / "codes", "--codec", well)[1] == [
        "samples repeat each other"
    ]


def test_labels_in_another_order_are_named(well, tmp_path):
    def turn(_split, rows):
        return rows | {"label": (rows["label"] + 3) % 10}

    store = edited_store(well / "codes", tmp_path / "codes", turn)
    assert examined(tmp_path, "--prior", well, "--codes", store)[1] == ["labels shuffled"]


def test_one_dead_level_is_named(tmp_path, two_levels):
    code, faults = examined(tmp_path, "--codes", two_levels)
    assert (code, faults) == (0, ["dead level"])


@pytest.fixture
def two_levels(well, tmp_path) -> Path:
    """A store of two levels, of which the second holds one code."""
    index = CodeStore.open(well / "codes").index
    spec = replace(index.spec, levels=(*index.spec.levels, LevelSpec((2, 2), 64)))
    from hashlib import sha256

    from vq_prior.core.disk.code_store import shard_bytes, store_columns

    columns, shards = store_columns(spec, labelled=True), []
    for shard in index.shards:
        rows = CodeStore.open(well / "codes", shard.split).rows(np.arange(shard.num_rows))
        data = shard_bytes(columns, rows | {"codes.1": np.full((shard.num_rows, 2, 2), 7)})
        (tmp_path / "two" / shard.split).mkdir(parents=True, exist_ok=True)
        (tmp_path / "two" / shard.file).write_bytes(data)
        shards.append(replace(shard, sha256=sha256(data).hexdigest()))
    other = replace(index.codec, id="f" * 64, source="gone")
    write_index(tmp_path / "two", replace(index, spec=spec, columns=columns, shards=tuple(shards), codec=other))
    return tmp_path / "two"


def test_half_precision_flips_are_named(well, tmp_path):
    wrong = np.random.default_rng(0)

    def flip(_split, rows):
        at = wrong.random(rows["codes.0"].shape) < 0.02
        return rows | {"codes.0": np.where(at, (rows["codes.0"].astype(np.int64) + 1) % 128, rows["codes.0"])}

    store = edited_store(well / "codes", tmp_path / "codes", flip)
    assert examined(tmp_path, "--codes", store, "--codec", well, "--data", "digits") == (0, ["half-precision flips"])

    def lift(codec: VQVAE) -> None:
        # Far from zero, bfloat16 has no digits left for what tells codes from each other.
        last = [module for module in codec.encoder.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        last.bias += 64
        codec.quantizer.codebook += 64

    _, faults = examined(tmp_path, "--codec", edited_codec(well, tmp_path / "c", lift), "--data", "digits")
    assert "half-precision flips" in faults


def test_too_little_data_is_named(trainer, tmp_path):
    data = digit_folder(tmp_path / "pictures", count=300)
    trainer.codec(tmp_path / "run", str(data), steps=150)
    trainer.codes(tmp_path / "run", str(data))
    assert examined(tmp_path, "--codes", tmp_path / "run" / "codes")[1] == ["too little data"]


def test_copies_are_named(well, tmp_path):
    def repeat(_split, rows):
        return {name: rows[name][np.arange(len(rows[name])) % 20] for name in rows} | {
            "source_index": rows["source_index"]
        }

    store = edited_store(well / "codes", tmp_path / "codes", repeat)
    assert "repeated data" in examined(tmp_path, "--codes", store)[1]


def test_a_model_alone_is_not_called_healthy(well, tmp_path, capsys):
    model = shutil.copytree(well / "model", tmp_path / "model")
    assert examined(tmp_path, "--model", model) == (0, [])
    assert "verdict: none; name --data or --codes" in capsys.readouterr().out
    assert json.loads((tmp_path / "doctor.json").read_text())["healthy"] is None


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((), 2, "doctor needs --codec, --codes, --prior or --model"),
        (("--model", "nowhere"), 3, "nowhere does not exist"),
        (("--codes", "nowhere"), 3, "nowhere does not exist"),
        (("--model", "m", "--codec", "c"), 2, "leave --codec and --prior out"),
    ],
)
def test_what_is_missing_is_said_in_one_line(words, code, text, capsys):
    assert main(["doctor", *words]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert text in lines[0]
