"""A training that starts from another codec: its weights at step 0, its shapes, and what may not be asked beside."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stage1_vqvae.model import load_codec
from vq_prior.cli import main

SHORT = ["--steps", "2", "--batch-size", "8", "--warmup-steps", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        np.save(folder / f"{name}.npy", rng.integers(0, 256, (60, 12, 8), dtype=np.uint8))
    return [str(folder / f"{name}.npy") for name in ("one", "two")]


def train(out: Path, data: str, *words: str) -> int:
    return main(["train-vqvae", "--data", data, "--out", str(out), *SHORT, *words])


def test_a_training_starts_from_another_codecs_weights(data: list[str], tmp_path: Path, capsys: Any) -> None:
    model = ["--model.width", "16", "--model.residual-width", "8", "--quantizer.num-codes", "40"]
    assert train(tmp_path / "base", data[0], *model) == 0
    base = load_codec(tmp_path / "base")
    still = ["--from", str(tmp_path / "base"), "--learning-rate", "1e-12", "--quantizer.decay", "0.999999"]
    assert train(tmp_path / "next", data[1], *still) == 0
    again = load_codec(tmp_path / "next")
    assert again.spec == base.spec
    assert again.architecture.width == 16
    for name, tensor in base.encoder.state_dict().items():  # two steps of nothing: the weights are those of the base
        torch.testing.assert_close(again.encoder.state_dict()[name], tensor, atol=1e-6, rtol=1e-6)
    config = json.loads((tmp_path / "next/vqvae-training/config.json").read_text())
    assert set(config["inputs"]) == {"data", "from"}
    assert "from_codec" not in json.loads((tmp_path / "base/vqvae-training/config.json").read_text())["settings"]
    capsys.readouterr()
    assert train(tmp_path / "next", data[1], *still) == 0  # the same command again: finished
    assert "is finished" in capsys.readouterr().out
    for words, told in (
        (["--model.width", "24"], "--model.width 24 cannot go with --from, whose codec has 16"),
        (["--quantizer.num-codes", "41"], "--quantizer.num-codes 41 cannot go with --from"),
        (["--image-size", "16"], "--from"),
        (["--quantizer.name", "fsq"], "--quantizer.name fsq cannot go with --from"),
    ):
        assert train(tmp_path / "wrong", data[1], "--from", str(tmp_path / "base"), *words) == 2
        assert told in capsys.readouterr().err
        assert not (tmp_path / "wrong").exists()
    assert train(tmp_path / "base", data[1], "--from", str(tmp_path / "base"), "--overwrite") == 2
    assert train(tmp_path / "none", data[1], "--from", str(tmp_path / "nowhere")) == 3
