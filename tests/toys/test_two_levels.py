"""A codec of two levels: shapes, files and log lines, trained for a moment on the digits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from vq_prior_toys.two_levels import TwoLevels

from stage1_vqvae.extract import extract_codes
from stage1_vqvae.model import load_codec
from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.quantizers import QUANTIZERS, Quantized
from stage1_vqvae.settings import ExtractCodes, ModelSettings, TrainVQVAE
from stage1_vqvae.train import train_vqvae
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.errors import NumericError, UsageError
from vq_prior.core.spec import LevelSpec
from vq_prior.testing import check_quantizer


@pytest.fixture(autouse=True)
def _installed(toys_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line finds in an environment with the toys, in this process."""
    monkeypatch.syspath_prepend(toys_installed)
    monkeypatch.setattr(QUANTIZERS, "_installed", None)
    monkeypatch.setattr(QUANTIZERS, "_entries", dict(QUANTIZERS._entries))


def tiny(out: Path) -> TrainVQVAE:
    return TrainVQVAE(
        "digits",
        out,
        steps=6,
        batch_size=16,
        log_every=3,
        warmup_steps=2,
        num_workers=1,
        precision="fp32",
        model=ModelSettings(width=16, num_residual_blocks=1),
        quantizer=QuantizerSettings(name="two-levels", num_codes=16, code_dim=4, decay=0.8, revive_below=0.2),
    )


def test_every_level_is_trained_logged_stored_and_decoded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    codec = load_codec(train_vqvae(tiny(tmp_path / "run")))
    assert codec.spec.levels == (LevelSpec((4, 4), 16), LevelSpec((4, 4), 8))
    assert "-> 4x4 grid of 16 codes + 4x4 grid of 8 codes (two-levels, 32 tokens)" in capsys.readouterr().out
    lines = (tmp_path / "run" / "vqvae-training" / "metrics.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        assert {"usage.0", "usage.1", "perplexity.0", "num_dead.1", "num_revived"} <= line.keys()
        assert "usage" not in line
    store = CodeStore.open(extract_codes(ExtractCodes(str(tmp_path / "run"), "digits", tmp_path / "codes")))
    values = store.rows(np.arange(3))
    images = codec.decode(tuple(torch.from_numpy(values[f"codes.{n}"].astype(np.int64)) for n in (0, 1)))
    assert images.shape == (3, 1, 8, 8)


def test_vectors_are_the_sum_of_what_numpy_finds_nearest() -> None:
    torch.manual_seed(0)
    module = TwoLevels(tiny(Path("run")).quantizer).eval()
    z = torch.randn(50, 4)
    result, left, told = module(z), z.numpy(), []
    for level in (module.coarse, module.fine):
        table = level.codebook.numpy()
        told.append(((left[:, None] - table[None]) ** 2).sum(-1).argmin(1))
        left = left - table[told[-1]]
    assert all(np.array_equal(codes.numpy(), found) for codes, found in zip(result.codes, told, strict=True))
    np.testing.assert_allclose(result.vectors.numpy(), z.numpy() - left, atol=1e-5)  # float32 sums of two numbers


def test_a_level_that_collapses_is_named(tmp_path: Path) -> None:
    settings = tiny(tmp_path / "run")
    alone = replace(settings.quantizer, num_codes=512, start=None, revive_below=None)
    settings = replace(settings, quantizer=alone, learning_rate=1e-6, fail_on_collapse=True)
    with pytest.raises(NumericError, match=r"only \d+ of 512 codes of level 0 were used over the last 48 images"):
        train_vqvae(settings)


def test_it_keeps_the_contract_of_a_quantiser() -> None:
    check_quantizer(lambda: TwoLevels(tiny(Path("run")).quantizer))


def test_what_breaks_the_contract_is_named() -> None:
    class Forgetful(TwoLevels):
        def identity_tensors(self) -> dict[str, torch.Tensor]:
            return {name: tensor for name, tensor in super().identity_tensors().items() if "fine" not in name}

    class Hasty(TwoLevels):
        def forward(self, z: torch.Tensor) -> Quantized:
            self.coarse.codebook += 0.1
            return super().forward(z)

    class Unlisted(TwoLevels):
        loss_terms: ClassVar[dict[str, float | None]] = {}

    settings = tiny(Path("run")).quantizer
    for wrong, message in (
        (Forgetful, "codes must depend on identity_tensors alone"),
        (Hasty, "axes before the last are batch"),
        (Unlisted, "loss_terms does not list"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_quantizer(lambda wrong=wrong: wrong(settings))


def test_a_setting_that_it_does_not_read_is_refused(tmp_path: Path) -> None:
    settings = tiny(tmp_path / "run")
    with pytest.raises(UsageError, match=r"--quantizer\.distance does not apply to two-levels, got cosine"):
        train_vqvae(replace(settings, quantizer=replace(settings.quantizer, distance="cosine")))
