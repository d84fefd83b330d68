"""`vq-prior train`: the whole road in one command, which can be left anywhere and gone on with."""

import dataclasses
import json
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from processes import kill_all

from stage1_vqvae.data.sources import open_data
from vq_prior.cli import main, parse
from vq_prior.cli.plan import CodecPlan, Plan, PriorPlan, read_plan, write_plan
from vq_prior.cli.road import name_of
from vq_prior.cli.showing import is_whole
from vq_prior.core.training.runs import run_config
from vq_prior.judge.fingerprint import fingerprint
from vq_prior.settings import Train

FILES = ("samples.png", "evaluation.json", "report.html", "plan.json", "clock.json")
FOLDERS = ("vqvae", "codes", "prior", "model")
MOMENTS = (  # what is there when a run is killed, at the latest
    *("clock.json", "vqvae-training/checkpoints/step-00000005", "vqvae", "codes", "prior-training/config.json"),
    *("prior-training/checkpoints/step-00000005", "prior", "model", "samples.png"),
)


def small_plan(out, data="digits", **settings):
    """A plan of a moment's work for digits."""
    typed = Train(data=data, out=out, **settings)
    network = {"num_layers": 2, "hidden_size": 32, "num_heads": 2}
    codec = {"steps": 12, "batch_size": 16, "model": {"width": 16}, "checkpoint_every": 5}
    prior = {"batch_size": 16, "model": network, "checkpoint_every": 5}
    return Plan(
        1,
        run_config("train", typed, {}).settings,
        open_data(data).data_id,
        None,
        CodecPlan("small", codec, prior, {}, "for a test"),
        (PriorPlan(None, {"steps": 12, "eval_every": 6}, 60, {}, "for a test"),),
    )


def words_of(out, *more, data="digits"):
    return ["train", "--data", data, "--out", str(out), *map(str, more)]


def follow(out, plan, *more):
    """Write a plan into a RUN that has nothing else, and go the road."""
    out.mkdir(parents=True)
    write_plan(out, plan)
    assert main(words_of(out, *more)) == 0
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A RUN that followed `small_plan` undisturbed."""
    out = tmp_path_factory.mktemp("train") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stage1_vqvae.modalities.pictures.classifier.STEPS", 40)
        patch.setattr("vq_prior.judge.evaluate.STEPS", 40)
        return follow(out, small_plan(out))


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def model_of(run):
    return fingerprint(run / "model")


def test_the_road_leaves_all_that_is_promised(whole):
    assert all((whole / name).is_dir() for name in FOLDERS)
    assert all((whole / name).is_file() for name in FILES)
    assert not (whole / ".timing").exists()
    assert json.loads((whole / "evaluation.json").read_text())["samples"]["num_images"] == 60
    with Image.open(whole / "samples.png") as sheet:
        assert sheet.size[0] == sheet.size[1]  # ten of each of ten classes
    assert json.loads((whole / "clock.json").read_text())["seconds"] > 1
    assert "samples" in (whole / "report.html").read_text(encoding="utf-8")


def test_a_finished_run_has_nothing_to_do(copy, capsys):
    before = {name: (copy / name).stat().st_mtime_ns for name in FILES}
    assert main(words_of(copy)) == 0
    assert "is finished; nothing to do" in capsys.readouterr().out
    assert {name: (copy / name).stat().st_mtime_ns for name in FILES} == before


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["samples.png", "evaluation.json", "report.html"])
def test_what_is_torn_or_missing_is_made_anew(copy, name, capsys):
    content = (copy / name).read_bytes()
    for torn in (content[: len(content) // 2], b"", None):
        (copy / name).unlink() if torn is None else (copy / name).write_bytes(torn)
        assert not is_whole(copy / name)
        assert main(words_of(copy)) == 0
        assert is_whole(copy / name)
        if name == "samples.png":
            assert (copy / name).read_bytes() == content
    assert model_of(copy) == model_of(copy)
    assert "1/4" not in capsys.readouterr().out  # nothing was trained again


@pytest.mark.fault("F1", "R2")
def test_killed_and_run_again_it_ends_in_the_same_model(whole, tmp_path, warm, faults, monkeypatch):
    monkeypatch.setattr("stage1_vqvae.modalities.pictures.classifier.STEPS", 40)
    monkeypatch.setattr("vq_prior.judge.evaluate.STEPS", 40)
    kills = faults.number(1, 10)
    for number in range(kills):
        out = tmp_path / str(number)
        out.mkdir()
        shutil.copy(whole / "plan.json", out)
        awaited = faults.rng.choice(MOMENTS)
        with open(os.devnull, "w") as nothing:
            running = warm.start(words_of(out), stdout=nothing.fileno(), stderr=nothing.fileno())
            deadline = time.monotonic() + 120
            while not (out / awaited).exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(faults.rng.uniform(0, 0.1))
            kill_all(running.pid)
            running.wait()
        spent = json.loads((out / "clock.json").read_text())["seconds"]
        assert main(words_of(out)) == 0, awaited
        assert model_of(out) == model_of(whole), awaited
        assert all(is_whole(out / name) for name in FILES[:3])
        assert json.loads((out / "clock.json").read_text())["seconds"] > spent
        assert (out / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    faults.planted(kills)


def test_the_samples_are_those_of_the_pipeline(whole):
    from vq_prior.model.pipeline import VQPriorPipeline

    pipeline = VQPriorPipeline.from_pretrained(whole / "model")
    with Image.open(whole / "samples.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    size, side = 10, pixels.shape[0] // 10
    factor = (side - 2) // 8
    for number in (0, 37, 99):  # sample i of the seed is in row i // 10, of class i // 10
        image = np.asarray(pipeline(1, labels=number // 10, seed=0, first_index=number).images[0])
        top, left = 2 + number // size * (8 * factor + 2), 2 + number % size * (8 * factor + 2)
        shown = pixels[top : top + 8 * factor : factor, left : left + 8 * factor : factor]
        if shown.shape != image.shape or not np.array_equal(shown, image):  # a sheet without a margin
            top, left = top - 2, left - 2
            shown = pixels[top : top + 8 * factor : factor, left : left + 8 * factor : factor]
        assert np.array_equal(shown, image), number


@pytest.mark.usefixtures("quick")
def test_another_part_of_the_plan_trains_the_prior_on(copy, tmp_path, capsys):
    """As more minutes would: and a RUN that follows the longer plan from its start ends in the same model."""
    plan = read_plan(copy)
    longer = plan.and_then(replace(plan.prior[0], settings={"steps": 20, "eval_every": 6}))
    for name in FILES[:3]:
        (copy / name).unlink()
    write_plan(copy, longer)
    codec, codes = fingerprint(copy / "vqvae"), fingerprint(copy / "codes")
    assert main(words_of(copy)) == 0
    assert "1/4" not in capsys.readouterr().out
    assert json.loads((copy / "prior" / "prior_config.json").read_text())["trained_steps"] == 20
    assert (fingerprint(copy / "vqvae"), fingerprint(copy / "codes")) == (codec, codes)
    anew = follow(tmp_path / "anew", longer)
    assert model_of(anew) == model_of(copy)


def pictures(folder, count=80, side=8):
    """Pictures of two classes that take no time."""
    rng = np.random.default_rng(0)
    for number in range(count):
        kind = ("cat", "dog")[number % 2]
        (folder / kind).mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (side, side)) // (1 + number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{number:03d}.png")
    return folder


@pytest.fixture
def hasty(monkeypatch):
    """A plan may have very few steps, and the evaluation's network is fitted for a moment."""
    monkeypatch.setattr("vq_prior.cli.choices.LEAST_STEPS", 2)
    monkeypatch.setattr("vq_prior.cli.deciding.LEAST_STEPS", 2)
    monkeypatch.setattr("vq_prior.cli.deciding.WORTH", 2)
    monkeypatch.setattr("vq_prior.cli.measure.STEPS", 40)
    monkeypatch.setattr("vq_prior.cli.choices.STARTS", 0.5)
    monkeypatch.setattr("vq_prior.cli.choices.EPOCHS", 1)


@pytest.mark.usefixtures("hasty", "quick")
def test_minutes_are_planned_once_and_more_of_them_train_on(tmp_path, capsys, monkeypatch):
    data, out = str(pictures(tmp_path / "data")), tmp_path / "run"
    monkeypatch.setattr("vq_prior.cli.deciding.most_prior_steps", lambda *_, **__: 60)
    assert main(words_of(out, "--minutes", 1, data=data)) == 0
    told = capsys.readouterr().out
    plan = read_plan(out)
    assert plan.minutes == 1
    assert plan.codec.recipe in ("grid", "small")
    assert plan.codec.settings["steps"] <= 2000
    assert {"codec_step", "prior_step"} <= plan.codec.measured.keys()
    (part,) = plan.prior
    assert part.settings["steps"] <= 60
    assert all(seconds > 0 for name, seconds in part.measured.items() if name not in ("codec_begin", "codec_step"))
    assert plan.codec.why in told
    assert part.why in told
    for number in range(1, 5):
        assert f"{number}/4  " in told
    assert told.count("of 1 minutes left") == 4
    assert "of 1 minutes: look at" in told
    for fewer in (1, 0.5):
        assert main(words_of(out, "--minutes", fewer, data=data)) == 0
        assert "nothing to do" in capsys.readouterr().out
    assert read_plan(out) == plan
    monkeypatch.setattr("vq_prior.cli.deciding.most_prior_steps", lambda *_, **__: 90)
    codec = fingerprint(out / "vqvae")
    assert main(words_of(out, "--minutes", 3, data=data)) == 0
    assert "3/4  training the prior on" in capsys.readouterr().out
    more = read_plan(out)
    assert more.prior[0] == part
    assert (more.prior[1].minutes, more.prior[1].settings["steps"]) == (3, 90)
    assert more.codec == plan.codec
    assert fingerprint(out / "vqvae") == codec
    assert all(is_whole(out / name) for name in FILES[:3])
    assert main(words_of(out, data=data)) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_too_few_minutes_are_refused_and_leave_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(words_of(out, "--minutes", 0.01)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --minutes must be at least ")
    assert "got 0.01" in error
    assert not out.exists()


def test_a_model_is_started_from(whole, tmp_path, capsys):
    out = tmp_path / "tuned"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stage1_vqvae.modalities.pictures.classifier.STEPS", 40)
        patch.setattr("vq_prior.judge.evaluate.STEPS", 40)
        plan = small_plan(out, from_model=str(whole / "model"))
        part = replace(plan.prior[0], settings={"steps": 5, "eval_every": 5, "batch_size": 16})
        plan = replace(plan, codec=CodecPlan("from", {}, {}, {}, "stays"), prior=(part,))
        follow(out, plan, "--from", whole / "model")
    assert not (out / "vqvae").exists()
    codec_ids = {json.loads((run / "model" / "config.json").read_text())["codec_id"] for run in (out, whole)}
    assert len(codec_ids) == 1
    assert json.loads((out / "prior" / "prior_config.json").read_text())["trained_steps"] == 5
    assert all(is_whole(out / name) for name in FILES[:3])
    assert main(words_of(out)) == 0  # what it began from is the RUN's
    assert "nothing to do" in capsys.readouterr().out
    assert main(words_of(out, "--from", whole / "model", "--image-size", "16")) == 2
    assert "--image-size cannot go with --from" in capsys.readouterr().err


def test_other_data_and_other_settings_are_refused(copy, tmp_path, capsys):
    assert main(words_of(copy, "--seed", 4)) == 2
    error = capsys.readouterr().err
    assert "seed 0 -> 4" in error
    assert "--accept-changes" not in error
    assert main(words_of(copy, data=str(pictures(tmp_path / "others")))) == 2
    assert "the content of data" in capsys.readouterr().err
    assert main(words_of(copy, "--classes", "one,two")) == 2
    assert "classes None -> one,two" in capsys.readouterr().err


def test_a_run_of_other_commands_has_no_minutes(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    assert main(words_of(run, "--minutes", 5)) == 2
    assert "but no plan.json" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--minutes", "30"]])
def test_a_dry_run_tells_the_plan_and_writes_nothing(tmp_path, capsys, more):
    data, out = str(pictures(tmp_path / "data")), tmp_path / "run"
    assert main(words_of(out, "--dry-run", *more, data=data)) == 0
    told = capsys.readouterr().out
    assert "steps of the prior of" in told
    assert "nothing was written" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_dry_run_tells_the_plan_that_is_there(copy, capsys):
    before = (copy / "clock.json").read_bytes()
    assert main(words_of(copy, "--dry-run")) == 0
    assert "for a test" in capsys.readouterr().out
    assert (copy / "clock.json").read_bytes() == before


def visible(folder):
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


@pytest.mark.usefixtures("quick")
def test_overwrite_starts_anew_and_touches_nothing_else(copy, monkeypatch):
    (copy / "notes.txt").write_text("mine")
    (copy / "old").mkdir()
    changed = []
    monkeypatch.setattr("vq_prior.cli.train._go", lambda road, _: changed.append(visible(road.out)))
    assert main(words_of(copy, "--seed", 4, "--overwrite")) == 0
    assert changed == [["clock.json", "notes.txt", "old"]]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--minutes", "0"], "--minutes must be a number above 0"),
        (["--minutes", "soon"], "--minutes must be a number"),
        (["--seed", "-1"], "--seed must be"),
        (["--image-size", "huge"], "--image-size must be"),
        (["--from", "no-such-folder"], "no-such-folder"),
        (["--steps", "5"], "unknown flag --steps"),
    ],
)
def test_a_wrong_word_is_named_before_anything_is_made(tmp_path, capsys, words, named):
    assert main([*words_of(tmp_path / "run"), *words]) != 0
    streams = capsys.readouterr()
    assert named in streams.err
    assert streams.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("digits", "digits"),
        ("owner/flowers@main", "flowers"),
        ("owner/flowers:small", "flowers"),
        ("shared/cifar10-jpeg/train.parquet", "cifar10-jpeg"),
        ("my pictures/", "my-pictures"),
        ("images/cats.zip", "cats"),
        ("data/train", "data"),
    ],
)
def test_a_run_without_a_name_has_that_of_its_data(data, name):
    assert name_of(data) == name


def test_quickstart_is_the_road_of_the_digits(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("vq_prior.cli.quickstart.train", lambda settings, **more: asked.append((settings, more)))
    assert main(["quickstart", "--out", str(tmp_path / "q"), "--seed", "5"]) == 0
    ((settings, more),) = asked
    assert dataclasses.asdict(settings) == dataclasses.asdict(Train(data="digits", out=tmp_path / "q", seed=5))
    assert more == {"evaluated": False}
    assert parse(["train", "--data", "digits"]).settings.out is None


def test_two_processes_go_the_road_together(whole, tmp_path, run_cli):
    out = tmp_path / "two"
    out.mkdir()
    shutil.copy(whole / "plan.json", out)
    done = run_cli(*words_of(out, "--num-processes", 2), timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4/4  ") == 1
    assert all(is_whole(out / name) for name in FILES[:3])
    assert json.loads((out / "prior" / "prior_config.json").read_text())["trained_steps"] == 12
