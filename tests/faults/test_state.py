"""A checkpoint that lacks a part, a run with other settings, weights by other names: refused, and said how."""

import json
import shutil
from pathlib import Path

import pytest

from stage1_vqvae.settings import TrainVQVAE
from stage2_prior.settings import TrainPrior
from vq_prior.cli import main
from vq_prior.core.disk.artifacts import MANIFEST, write_manifest
from vq_prior.core.disk.tensors import read_tensors, write_tensors
from vq_prior.core.errors import ArtifactError
from vq_prior.core.settings import settings_in
from vq_prior.core.training.runs import flatten, free_names
from vq_prior.model.pipeline import VQPriorPipeline

STAGES = {"codec": "vqvae-training", "prior": "prior-training"}


@pytest.fixture(scope="module")
def begun(tiny_run, tmp_path_factory) -> dict[str, tuple[list[str], Path]]:
    """Of each stage a run that has more to do: the words that continue it, and its training folder."""
    out = tmp_path_factory.mktemp("begun")
    shutil.copytree(tiny_run, out / "run")
    words = {
        "codec": ["train-vqvae", "--data", "digits", "--out", str(out / "run")],
        "prior": ["train-prior", "--codes", str(out / "run" / "codes"), "--codec", str(out / "run")],
    }
    words["prior"] += ["--out", str(out / "run")]
    return {
        stage: ([*words[stage], "--steps", "30", "--batch-size", "32"], out / "run" / folder)
        for stage, folder in STAGES.items()
    }


def refused(capsys, words: list[str], code: int) -> str:
    capsys.readouterr()
    assert main(words) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.fault("F13")
@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_without_one_of_its_parts_is_refused(stage, begun, capsys, faults, tmp_path):
    words, folder = begun[stage]
    (checkpoint,) = (folder / "checkpoints").iterdir()
    words = ["40" if word == "30" else word for word in words]  # more steps: it goes on from the checkpoint
    kept = Path(shutil.copytree(checkpoint, tmp_path / "kept"))
    config = (folder / "config.json").read_bytes()
    files = [path for path in sorted(kept.iterdir()) if path.name != MANIFEST]
    tensors = [(path, key) for path in files if path.suffix == ".safetensors" for key in read_tensors(path)]
    cases = [(path, None) for path in files] + faults.rng.sample(tensors, faults.number(3, len(tensors)))
    for path, key in cases:
        victim = checkpoint / path.name
        if key is None:
            victim.unlink()
        else:
            write_tensors(victim, {name: tensor for name, tensor in read_tensors(path).items() if name != key})
        (checkpoint / MANIFEST).unlink()
        write_manifest(checkpoint)  # as a program would leave it that forgot to save it
        if path.name == "state.json":  # then it is no checkpoint, and there is no other: the run would begin anew
            from vq_prior.core.disk.checkpoints import load_checkpoint

            with pytest.raises(ArtifactError):
                load_checkpoint(checkpoint)
        else:
            line = refused(capsys, words, 3)
            assert "step 30" in line, (path.name, key, line)
        shutil.rmtree(checkpoint)
        shutil.copytree(kept, checkpoint)
        (folder / "config.json").write_bytes(config)
    faults.planted(len(cases))


def other(value: object) -> object:
    """Return another value of a setting, as a config may hold."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value}-x"


def put(settings: dict, name: str, value: object) -> None:
    *path, last = name.split(".")
    for part in path:
        settings = settings[part]
    settings[last] = value


def typed(setting, value: object, words: list[str]) -> list[str]:
    """Return the words that give a setting, for only what is given can be refused; none if `words` has them."""
    if setting.flag in words:
        return []
    if setting.kind is bool:
        *groups, last = setting.flag[2:].split(".")
        return ["--" + ".".join([*groups, last if value else f"no-{last}"])]
    return [setting.flag, str(value)]


@pytest.mark.fault("F14")
@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_but_the_free_ones_must_be_what_it_was(stage, begun, capsys, faults):
    words, folder = begun[stage]
    text = (folder / "config.json").read_text()
    settings_class = {"codec": TrainVQVAE, "prior": TrainPrior}[stage]
    settings = {setting.name: setting for setting in settings_in(settings_class)}
    names = flatten(json.loads(text)["settings"])
    assert len(names) > 25
    for name, value in names.items():
        config = json.loads(text)
        put(config["settings"], name, other(value))
        (folder / "config.json").write_text(json.dumps(config))
        if name == "report_to" or (value is None and name != "from_model"):
            continue
        if name == "from_model":  # the one place that a rerun takes from its run
            assert "None-x does not exist" in refused(capsys, words, 3)
        elif name in free_names(settings_class):
            assert main(words) == 0, (name, capsys.readouterr().err)
        elif isinstance(value, int | float):
            line = refused(capsys, [*words, *typed(settings[name], value, words)], 2)
            assert f"{name.replace('_', '-')} {other(value)} -> {value}" in line, (name, line)
        elif not name.endswith("_column"):  # nothing that the setting can be; data are known by content, not by column
            assert main(words) in (2, 3), (name, capsys.readouterr())
            lines = capsys.readouterr().err.strip().splitlines()
            assert [line[:7] for line in lines] == ["error: "], (name, lines)
    for key in json.loads(text)["inputs"]:
        config = json.loads(text)
        config["inputs"][key] = "0" * 64
        (folder / "config.json").write_text(json.dumps(config))
        assert f"the content of {key} 0000" in refused(capsys, words, 2)
    (folder / "config.json").write_text(text)
    assert main(words) == 0
    faults.planted(len(names))


EDITS = {
    "_orig_mod.": lambda key, value: {f"_orig_mod.{key}": value},
    "module.": lambda key, value: {f"module.{key}": value},
    "missing": lambda _key, _value: {},
    "extra": lambda key, value: {key: value, f"{key}.more": value.clone()},
    "another shape": lambda key, value: {key: value[None].clone()},
}


@pytest.mark.fault("F15")
@pytest.mark.parametrize("part", ["vqvae", "prior"])
def test_weights_by_other_names_or_shapes_are_refused(part, tiny_model, tmp_path, faults):
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    weights = model / part / "model.safetensors"
    tensors = read_tensors(weights)
    names = [name for name in tensors if tensors[name].is_floating_point()]
    for edit, change in EDITS.items():
        for name in faults.rng.sample(names, faults.number(2, len(names))):
            rest = {key: value for key, value in tensors.items() if key != name}
            write_tensors(weights, rest | change(name, tensors[name]))
            (model / part / MANIFEST).unlink()
            write_manifest(model / part)
            with pytest.raises(ArtifactError) as told:
                VQPriorPipeline.from_pretrained(model)
            assert "\n" not in str(told.value), (edit, name)
            assert str(weights) in str(told.value), (edit, name, told.value)
    faults.planted(len(EDITS) * faults.number(2, len(names)))


@pytest.mark.fault("F15")
def test_no_weights_are_written_under_the_names_of_a_wrapper(tiny_run):
    files = list(tiny_run.rglob("*.safetensors"))
    assert len(files) > 8
    for path in files:
        assert not any("_orig_mod" in name or name.startswith("module.") for name in read_tensors(path)), path
