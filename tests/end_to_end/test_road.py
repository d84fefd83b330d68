"""The whole road at tiny size, as a user types it: train, kill, resume, extract, generate, share."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vq_prior.cli import main

FOREIGN = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("vq_prior", "stage1_vqvae", "stage2_prior"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocker())
import json, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], subfolder="prior")
config = json.load(open(sys.argv[1] + "/prior/prior_config.json"))
prompts = torch.arange(config["num_codes"], config["num_codes"] + config["num_classes"] + 1)[:, None]
print(json.dumps(model.generate(prompts).tolist()))
"""


def test_the_prior_is_a_stock_model_to_other_programs(tiny_run):
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(tiny_run / "model")], capture_output=True, text=True, check=True
    )
    tokens = np.array(json.loads(done.stdout.splitlines()[-1]))
    prior = json.loads((tiny_run / "model" / "prior" / "prior_config.json").read_text())
    assert tokens.shape == (prior["num_classes"] + 1, 1 + 16)
    assert tokens[:, 1:].max() < prior["num_codes"]


def test_generate_writes_every_image_a_grid_and_the_request(tiny_run, tmp_path, capsys):
    words = ["generate", "--model", str(tiny_run / "model"), "--labels", "three,7", "--num-images", "5"]
    words += ["--out", str(tmp_path / "out")]
    assert main(words) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [*(f"{n:06d}.png" for n in range(5)), "samples.json"]
    assert (tmp_path / "out.png").is_file()
    request = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert request["labels"] == ["three", "seven"]
    capsys.readouterr()
    assert main(words) == 0
    assert "already holds" in capsys.readouterr().out
    assert main([*words, "--seed", "4"]) == 2
    assert "seed 0 -> 4" in capsys.readouterr().err
    assert main([*words, "--seed", "4", "--overwrite"]) == 0


def test_a_folder_that_is_not_ours_is_never_replaced(tiny_run, tmp_path, capsys):
    diary = tmp_path / "out" / "diary.txt"
    diary.parent.mkdir()
    diary.write_text("dear diary")
    model, run = str(tiny_run / "model"), str(tiny_run / "vqvae")
    for words in (
        ["generate", "--model", model, "--num-images", "1"],
        ["extract-codes", "--codec", run, "--data", "digits"],
        ["assemble", "--codec", run, "--prior", str(tiny_run / "prior")],
        ["reconstruct", "--codec", run, "--data", "digits"],
    ):
        assert main([*words, "--out", str(diary.parent), "--overwrite"]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert diary.read_text() == "dear diary"


def test_finished_commands_say_so_and_more_steps_continue(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    words = json.loads((run / "vqvae-training" / "config.json").read_text())["settings"]
    steps = words["steps"]
    again = ["train-vqvae", "--config", str(run / "vqvae-training" / "config.json"), "--out", str(run)]
    assert main(again) == 0
    assert "finished" in capsys.readouterr().out
    assert main([*again, "--steps", str(steps + 5)]) == 0
    lines = (run / "vqvae-training" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["step"] == steps + 5


def test_dry_run_prints_the_plan_and_writes_nothing(tiny_run, tmp_path, capsys):
    assert main(["train-vqvae", "--data", "digits", "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert all(word in plan for word in ("steps", "parameters", "grid", "tokens", "time"))
    codes = str(tiny_run / "codes")
    assert main(["train-prior", "--codes", codes, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert all(word in plan for word in ("steps", "parameters", "tokens", "time"))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("quick")
def test_evaluate_reconstruct_and_verify(tiny_run, tmp_path, capsys):
    run = str(tiny_run)
    words = ["evaluate", "--model", run + "/model", "--data", "digits", "--num-images", "60"]
    assert main([*words, "--out", str(tmp_path / "e.json")]) == 0
    result = json.loads((tmp_path / "e.json").read_text())
    assert result["codec"]["num_images"] == 89
    assert 0 < result["prior"]["nats_per_token"] < 10
    assert main(["reconstruct", "--codec", run, "--data", "digits", "--out", str(tmp_path / "r")]) == 0
    assert (tmp_path / "r.png").is_file()
    capsys.readouterr()
    for part in ("model", "vqvae", "prior", "codes", "vqvae-training", "."):
        assert main(["verify", str(tiny_run / part)]) == 0, part
    assert main(["verify", str(tmp_path)]) == 3


def test_unlabelled_odd_pictures_make_an_unconditional_model(tmp_path, capsys):
    rng = np.random.default_rng(0)
    folder = tmp_path  # everything that is written lies among the pictures, and is none of them
    for number in range(24):
        pixels = rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)
        modes = {1: "L", 2: "RGBA", 3: "P", 4: "CMYK"}
        picture = Image.fromarray(pixels).convert(modes.get(number, "RGB"))
        picture.save(folder / f"{number}.{'png' if number in (2, 3) else 'jpg'}")
    Image.fromarray(rng.integers(0, 65536, (48, 40), dtype=np.uint16)).save(folder / "sixteen.png")
    run, small = str(tmp_path / "run"), ["--steps", "2", "--batch-size", "4"]
    assert main(["train-vqvae", "--data", str(folder), "--out", run, *small]) == 0
    assert main(["extract-codes", "--codec", run, "--data", str(folder), "--out", run + "/codes"]) == 0
    assert main(["train-prior", "--codes", run + "/codes", "--codec", run, "--out", run, *small]) == 0
    assert main(["generate", "--model", run + "/model", "--num-images", "2", "--out", run + "/out"]) == 0
    with Image.open(run + "/out/000001.png") as picture:
        assert picture.size == (40, 48)
        assert picture.mode == "RGB"
    capsys.readouterr()
    words = ["generate", "--model", run + "/model", "--guidance-scale", "2", "--out", run + "/no"]
    assert main(words) == 2
    assert "without classes" in capsys.readouterr().err
    assert not os.path.exists(run + "/no")
    assert main(["train-vqvae", "--data", str(folder), "--out", run, *small]) == 0
    assert main(["extract-codes", "--codec", run, "--data", str(folder), "--out", run + "/codes"]) == 0
    assert capsys.readouterr().out.count("left out what vq-prior wrote: run/") >= 1
