"""Bad input: one line, the documented exit code, and nothing at --out."""

import shutil

import pytest
from PIL import Image

from vq_prior.cli import main


@pytest.fixture
def fails(capsys, tmp_path):
    """A function that runs a command and checks how it fails."""

    def check(words, exit_code, *named):
        out = tmp_path / "out"
        assert main([*map(str, words), "--out", str(out)]) == exit_code
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        for text in named:
            assert text in lines[0]
        assert not out.exists()
        assert not (tmp_path / ".out.partial").exists()

    return check


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_data_that_is_not_there_or_not_images(fails, tmp_path):
    fails(["train-vqvae", "--data", tmp_path / "nowhere"], 3, "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(["train-vqvae", "--data", empty], 3, "empty")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(4):
        Image.new("L", (16, 16), number * 50).save(pictures / f"{number}.png")
    (pictures / "text.png").write_text("this is no picture")
    fails(["train-vqvae", "--data", pictures], 3, "text.png")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--steps", "-5"], "steps"),
        (["--steps", "0"], "steps"),
        (["--batch-size", "0"], "batch"),
        (["--learning-rate", "nan"], "learning"),
        (["--learning-rate", "-1"], "learning"),
        (["--image-size", "potato"], "image-size"),
        (["--quantizer.name", "magic"], "magic"),
    ],
)
def test_training_settings_out_of_range(fails, flags, named):
    fails(["train-vqvae", "--data", "digits", *flags], 2, named)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--labels", "cat"], "cat"),
        (["--top-k", "100000"], "top_k must be between"),
        (["--temperature", "nan"], "temperature"),
        (["--num-images", "0"], "num_images"),
    ],
)
@pytest.mark.fault("F34")
def test_sampling_settings_out_of_range(fails, tiny_run, flags, named):
    fails(["generate", "--model", tiny_run / "model", *flags], 2, named)


@pytest.mark.fault("F32")
def test_a_damaged_model(fails, tiny_run, tmp_path):
    model = shutil.copytree(tiny_run / "model", tmp_path / "model")
    _flip(model / "vqvae" / "model.safetensors")
    fails(["generate", "--model", model], 3, "model.safetensors")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
@pytest.mark.fault("F27")
def test_a_damaged_code_shard(fails, tiny_run, tmp_path, damage):
    codes = shutil.copytree(tiny_run / "codes", tmp_path / "codes")
    shard = codes / "train" / "shard-00000.safetensors"
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "flipped":
        _flip(shard)
    else:
        shard.unlink()
    fails(["train-prior", "--codes", codes], 3, "shard-00000")


@pytest.mark.fault("F30", "R10")
def test_a_prior_with_another_codecs_codes(fails, tiny_run, tmp_path, capsys):
    words = ["train-vqvae", "--data", "digits", "--steps", "3", "--batch-size", "16", "--seed", "9"]
    assert main([*words, "--out", str(tmp_path / "other")]) == 0
    capsys.readouterr()
    other = tmp_path / "other" / "vqvae"
    fails(["train-prior", "--codes", tiny_run / "codes", "--codec", other], 3, "codec")
    fails(["assemble", "--codec", other, "--prior", tiny_run / "prior"], 3, "codec")


def test_a_run_with_other_settings_is_not_overwritten(tiny_run, capsys):
    words = ["train-vqvae", "--data", "digits", "--out", str(tiny_run), "--learning-rate", "0.5"]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "learning-rate" in error
    assert "-> 0.5" in error


BAD = {
    "--temperature": ("0", "-1", "nan", "inf", "-inf", "x", "1e999"),
    "--top-k": ("0", "-3", "100000", "1.5", "nan", "x"),
    "--top-p": ("0", "-0.1", "1.1", "nan", "inf", "x"),
    "--min-p": ("-0.1", "1.1", "nan", "inf", "x"),
    "--guidance-scale": ("nan", "inf", "-inf", "x"),
    "--labels": ("10", "-1", "cat", "99999", "zero,cat", "1.5"),
    "--num-images": ("0", "-1", "x", "1e3", "10000000000"),
    "--seed": ("-1", "x", "1.5", str(2**64)),
    "--batch-size": ("0", "-4", "x", "100000"),
}


@pytest.mark.fault("F34")
def test_no_bad_sampling_argument_reaches_the_model(fails, tiny_run, faults):
    single = [(flag, value) for flag, values in BAD.items() for value in values]
    good = [("--temperature", "0.5"), ("--top-k", "5"), ("--top-p", "0.5"), ("--seed", "3"), ("--batch-size", "2")]
    cases = [[one] for one in single]
    while len(cases) < 200:
        flag, value = faults.rng.choice(single)
        cases.append([*[pair for pair in faults.rng.sample(good, 2) if pair[0] != flag], (flag, value)])
    for case in cases if faults.full else faults.rng.sample(cases, 40):
        fails(["generate", "--model", tiny_run / "model", *(word for pair in case for word in pair)], 2)
    faults.planted(faults.number(40, 200))
