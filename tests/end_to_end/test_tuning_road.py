"""The one command that fine-tunes someone's prior on a folder of pictures."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from vq_prior import VQPriorPipeline
from vq_prior.cli import main


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Forty digits without labels: of the base's own pictures, so that each of their codes has a token."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    folder.mkdir()
    for number, image in enumerate(np.floor(load_digits().images[:40] * 255 / 16 + 0.5)):
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def words(model, data, out, *more):
    short = ["--steps", "6", "--batch-size", "8", "--eval-every", "3"]
    return ["train-prior", "--from", str(model), "--lora", "--data", str(data), "--out", str(out), *short, *more]


PLAIN = """
import sys
sys.modules["peft"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], subfolder="prior")
print(model.config.vocab_size, list(model.generate(torch.full((2, 1), model.config.vocab_size - 1)).shape))
"""


def test_one_command_gives_a_plain_model_with_the_codec_untouched(tiny_model, pictures, tmp_path, capsys):
    out = tmp_path / "mine"
    assert main(words(tiny_model, pictures, out)) == 0
    told = capsys.readouterr().out
    assert "next: vq-prior generate" in told.splitlines()[-1]
    assert sorted(path.name for path in out.iterdir()) == ["codes", "model", "prior", "prior-training"]
    for file in ("model.safetensors", "config.json", "preprocessor_config.json", "manifest.json"):
        assert (out / "model" / "vqvae" / file).read_bytes() == (tiny_model / "vqvae" / file).read_bytes()
    codes = VQPriorPipeline.from_pretrained(tiny_model).prior.layout.num_codes
    done = subprocess.run([sys.executable, "-c", PLAIN, str(out / "model")], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[-2] == f"{codes + 1} [2, 17]"
    drawn = VQPriorPipeline.from_pretrained(out / "model")(4)
    assert drawn.labels is None
    for part in ("codes", "model", "prior", "prior-training"):
        assert main(["verify", str(out / part)]) == 0, part
    capsys.readouterr()
    assert main(words(tiny_model, pictures, out)) == 0
    assert "is finished (6 steps)" in capsys.readouterr().out
    config = out / "prior-training" / "config.json"
    assert main(["train-prior", "--config", str(config)]) == 0
    assert main(["train-prior", "--config", str(config), "--steps", "8"]) == 0
    assert "continuing at step 6 of 8" in capsys.readouterr().out


def test_classes_are_those_of_the_new_folder(tiny_run, pictures, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(pictures, data / "seven")
    shutil.copytree(pictures, data / "blank")
    assert main(words(tiny_run, data, tmp_path / "mine", "--learning-rate", "1e-12")) == 0
    pipe = VQPriorPipeline.from_pretrained(tmp_path / "mine" / "model")
    base = VQPriorPipeline.from_pretrained(tiny_run / "model")
    assert pipe.index.label_names == ("blank", "seven")
    as_is = {"temperature": 1.0, "guidance_scale": 1.0, "output_type": "np"}
    for new, old in (({"labels": "seven"}, {"labels": "seven"}), ({"labels": "blank"}, {"unconditional": True})):
        # hardly a weight moved: the same uniform numbers give the same pictures
        assert np.array_equal(pipe(8, **new, **as_is).images, base(8, **old, **as_is).images)
    request = ["generate", "--model", str(tmp_path / "mine" / "model"), "--num-images", "3", "--unconditional"]
    assert main([*request, "--out", str(tmp_path / "drawn")]) == 0
    told = json.loads((tmp_path / "drawn" / "samples.json").read_text())
    assert (told["unconditional"], told["labels"], told["sampling"]["guidance_scale"]) == (True, None, 1.0)
    capsys.readouterr()
    for more, named in ((["--labels", "seven"], "labels"), (["--guidance-scale", "2"], "guidance_scale")):
        assert main([*request, *more, "--out", str(tmp_path / "refused")]) == 2
        assert named in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("more", [(), ("--no-lora",)], ids=["lora", "every weight"])
def test_two_processes(more, tiny_model, pictures, tmp_path, run_cli, launched):
    done = run_cli(*words(tiny_model, pictures, tmp_path / "out", *more, "--num-processes", "2"), env=launched)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model" / "prior" / "model.safetensors").is_file()


def test_a_dry_run_leaves_nothing(tiny_model, pictures, tmp_path, capsys):
    assert main(words(tiny_model, pictures, tmp_path / "mine", "--dry-run")) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("of them trained", "lora-rank: 8", "38 training rows", "estimated time"))
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused_before_anything_is_written(tiny_run, tiny_model, pictures, tmp_path, capsys):
    other = tmp_path / "other"
    quick = ["--steps", "2", "--batch-size", "8"]
    assert main(["train-vqvae", "--data", "digits", "--out", str(other), "--seed", "9", *quick]) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    for given, exit_code, named in (
        (words(tiny_model, pictures, out, "--codec", str(other)), 3, "codec"),
        (words(tiny_model, pictures, out, "--codes", str(tiny_run / "codes")), 2, "both"),
        (["train-prior", "--from", str(tiny_model), "--lora", "--out", str(out)], 2, "neither"),
        (words(tiny_run / "prior", pictures, out), 2, "give --codec as well"),
        (words(tmp_path / "nowhere", pictures, out), 3, "nowhere"),
        (words(tiny_model, tmp_path / "nowhere", out), 3, "nowhere"),
        (words(tiny_model, pictures, out, "--model.num-layers", "3"), 2, "--model.num-layers 3 cannot go with --from"),
        (["train-prior", "--codes", str(tiny_run / "codes"), "--lora", "--out", str(out)], 2, "--lora needs"),
    ):
        assert main(given) == exit_code, given
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert named in lines[0]
        assert not out.exists()


def test_a_prior_folder_and_codes_need_no_codec(tiny_run, tmp_path, capsys):
    given = ["train-prior", "--from", str(tiny_run / "prior"), "--codes", str(tiny_run / "codes")]
    assert main([*given, "--out", str(tmp_path), "--steps", "2", "--batch-size", "8"]) == 0
    assert "next: vq-prior assemble" in capsys.readouterr().out
    assert not (tmp_path / "model").exists()
