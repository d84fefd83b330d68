"""Perceptual terms: what each measures, against an oracle; in a training, from when on, resumed to the bit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import killed_and_run_again
from torch import Tensor

from stage1_vqvae.model import load_codec
from stage1_vqvae.perceptual import PERCEPTUAL, Making, kind_of
from stage1_vqvae.perceptual.contract import Perceptual, local_statistics, statistics_distance
from stage1_vqvae.perceptual.own import FeatureNetwork, OwnFeatures, parts_of, turns_of
from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.settings import LossSettings, ModelSettings, TrainVQVAE
from stage1_vqvae.train import train_vqvae
from vq_prior.cli import main
from vq_prior.core.disk.checkpoints import latest_checkpoint
from vq_prior.core.errors import UsageError
from vq_prior.core.spec import CodeSpec, LevelSpec
from vq_prior.judge.fingerprint import fingerprint


class Rows:
    """Stripes of one of two directions, of random phase: what tells them apart is texture alone."""

    def __init__(self, shape: tuple[int, ...] = (16, 16), count: int = 200) -> None:
        rng = np.random.default_rng(0)
        self.labels = rng.integers(2, size=count)
        places = np.indices(shape)[[axis % len(shape) for axis in self.labels]]
        phases = rng.uniform(0, 2 * np.pi, (count, *(1 for _ in shape)))
        waves = np.sin(places * np.where(self.labels == 0, 1.2, 1.6).reshape(phases.shape) + phases)
        self._values = torch.from_numpy(waves[:, None].astype(np.float32))

    def __len__(self) -> int:
        return len(self._values)

    def batch(self, indices: Any) -> Tensor:
        return self._values[torch.from_numpy(np.asarray(indices))]


def spec_of(shape: tuple[int, ...], channels: int = 1) -> CodeSpec:
    return CodeSpec(channels, shape, (LevelSpec(tuple(side // 4 for side in shape), 32),))


def made(name: str, rows: Rows, shape: tuple[int, ...], *, labels: bool = True) -> Perceptual:
    making = Making(name, spec_of(shape), rows.labels if labels else None, 2 if labels else 0, 0, lambda _: None)
    term = kind_of(name)(making)
    term.fit(making, rows)
    return term.frozen()


@pytest.mark.parametrize("name", PERCEPTUAL.own_names())
@pytest.mark.parametrize("shape", [(16, 16), (24,), (8, 8, 8)])
def test_every_term_is_zero_for_equals_has_a_gradient_and_is_a_mean_over_rows(
    name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stage1_vqvae.perceptual.own.STEPS", 3)
    rows = Rows(shape)
    term = made(name, rows, shape)
    images = rows.batch(range(6))
    copies = (
        0.7 * images + 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    ).requires_grad_()
    assert float(term(images, images)) == pytest.approx(0, abs=1e-10)
    whole = term(images, copies)
    (gradient,) = torch.autograd.grad(whole, copies)
    assert float(whole.detach()) > 0
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    with torch.no_grad():
        parts = term(images[:2], copies[:2]) * 2 / 6 + term(images[2:], copies[2:]) * 4 / 6
    torch.testing.assert_close(parts, whole.detach(), rtol=1e-5, atol=1e-7)
    assert not any(parameter.requires_grad for parameter in term.parameters())


def test_local_statistics_are_those_of_numpy() -> None:
    features = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    mean, deviation = local_statistics(features, 4)
    starts = [(y, x) for y in range(0, 9 - 4 + 1, 2) for x in range(0, 8 - 4 + 1, 2)]
    windows = np.stack([features.numpy()[:, :, y : y + 4, x : x + 4].reshape(2, 3, 16) for y, x in starts], axis=2)
    np.testing.assert_allclose(mean.flatten(2), windows.mean(3), atol=1e-6)
    np.testing.assert_allclose(deviation.flatten(2), np.sqrt(windows.var(3) + 1e-4), atol=1e-5)
    other, scale = features * 1.5 + 0.2, torch.tensor([1.0, 2.0, 4.0])
    wanted = 0.0
    others = windows * 1.5 + 0.2
    for statistic in (lambda w: w.mean(3), lambda w: np.sqrt(w.var(3) + 1e-4)):
        wanted += (((statistic(others) - statistic(windows)) / scale.numpy()[None, :, None]) ** 2).mean()
    assert float(statistics_distance(features, other, scale, 4)) == pytest.approx(wanted, rel=1e-4)


def test_the_focal_frequency_loss_is_that_of_its_paper() -> None:
    images, copies = torch.randn(2, 3, 2, 8, 6, generator=torch.Generator().manual_seed(0))
    difference = np.fft.fft2(copies.numpy()) / np.sqrt(48) - np.fft.fft2(images.numpy()) / np.sqrt(48)
    weights = np.abs(difference)
    weights = weights / weights.max(axis=(2, 3), keepdims=True)
    wanted = (weights * np.abs(difference) ** 2).mean()
    found = kind_of("focal-frequency")(Making("focal-frequency", spec_of((8, 6), 2), None, 0, 0))(images, copies)
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_sliced_patches_are_sorted_projections() -> None:
    term = kind_of("patches")(Making("patches", spec_of((8, 8), 2), None, 0, 0)).frozen()
    images, copies = torch.randn(2, 2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = 0.0
    for projection in term.projections:  # type: ignore[union-attr]
        kernels = projection.weight.numpy().astype(np.float64)
        np.testing.assert_allclose(np.linalg.norm(kernels.reshape(len(kernels), -1), axis=1), 1, rtol=1e-5)
        size = kernels.shape[-1]
        sides = []
        for values in (images.numpy(), copies.numpy()):
            padded = np.pad(values, [(0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2])
            patches = np.stack([padded[:, :, y : y + size, x : x + size] for y in range(8) for x in range(8)], axis=1)
            sides.append(np.sort(np.einsum("bpcyx,kcyx->bkp", patches, kernels), axis=2))
        wanted += ((sides[1] - sides[0]) ** 2).mean() / 2
    assert float(term(images, copies)) == pytest.approx(wanted, rel=1e-4)
    # It does not see where a patch lies: a picture and its mirror image under mirrored patches differ, a shift hardly.
    moved = images.roll(4, dims=3)
    assert float(term(images, moved)) < 0.5 * float((images - moved).square().mean())


def test_a_fitted_network_sees_that_a_texture_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage1_vqvae.perceptual.own.STEPS", 100)
    rows = Rows()
    term = made("own", rows, (16, 16))
    assert isinstance(term, OwnFeatures)
    images = rows.batch(np.flatnonzero(rows.labels == 0)[:20])
    other = rows.batch(np.flatnonzero(rows.labels == 0)[20:40])  # the same stripes, of other phase
    blurred = torch.zeros_like(images)
    # A squared error prefers nothing at all to stripes that lie elsewhere; the term prefers the stripes.
    assert float((blurred - images).square().mean()) < float((other - images).square().mean())
    assert float(term(images, other)) < 0.7 * float(term(images, blurred))


def test_the_folded_network_is_the_fitted_one() -> None:
    torch.manual_seed(0)
    network = FeatureNetwork(3, (16, 16))
    for _ in range(3):
        network.train()(torch.randn(8, 3, 16, 16) * 2 + 1)
    x = torch.randn(4, 3, 16, 16)
    before = network.eval().maps(x)
    network.folded()
    for found, wanted in zip(network.maps(x), before, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_parts_and_turns_are_of_the_values() -> None:
    values = torch.arange(2 * 60 * 50, dtype=torch.float32).reshape(2, 1, 60, 50)
    rng = np.random.default_rng(0)
    parts = parts_of(values, rng)
    assert parts.shape == (2, 1, 48, 48)
    for part, value in zip(parts, values, strict=True):  # one window of it, as it lies there
        (place,) = (value[0] == part[0, 0, 0]).nonzero().tolist()
        assert torch.equal(part[0], value[0, place[0] : place[0] + 48, place[1] : place[1] + 48])
    assert parts_of(values[:, :, :20], rng, square=True).shape == (2, 1, 20, 20)
    assert parts_of(values[:, :, :20, :16], rng).shape == (2, 1, 20, 16)
    picture = torch.arange(9).reshape(1, 3, 3)
    assert [int(way(picture)[0, 0, 0]) for way in turns_of(2)] == [0, 2, 8, 6]
    assert [way(torch.arange(3)[None]).tolist() for way in turns_of(1)] == [[[0, 1, 2]], [[2, 1, 0]]]


def tiny(out: Path, **changes: object) -> TrainVQVAE:
    base = TrainVQVAE(
        "digits",
        out,
        steps=8,
        batch_size=16,
        checkpoint_every=3,
        log_every=2,
        warmup_steps=2,
        num_workers=1,
        precision="fp32",
        model=ModelSettings(width=16, num_residual_blocks=1),
        quantizer=QuantizerSettings(num_codes=32, code_dim=4, decay=0.8, revive_below=0.2),
        loss=LossSettings(perceptual="own"),
    )
    return replace(base, **changes)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage1_vqvae.perceptual.own.STEPS", 5)


@pytest.mark.usefixtures("short")
def test_a_training_has_the_term_from_its_start_on_and_a_killed_one_ends_in_the_same_bits(tmp_path: Path) -> None:
    train_vqvae(tiny(tmp_path / "run"))
    folder = tmp_path / "run" / "vqvae-training"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert ["perceptual" in line for line in lines] == [False, False, True, True]
    assert all(line["perceptual"] > 0 for line in lines[2:])
    checkpoint, _ = latest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    assert set(checkpoint.modules) == {"vqvae", "perceptual"}

    killed_and_run_again(lambda: train_vqvae(tiny(tmp_path / "again")), at=[2, 5])
    assert fingerprint(tmp_path / "again") == fingerprint(tmp_path / "run")
    with pytest.raises(UsageError, match=r"loss\.perceptual own -> turns"):
        train_vqvae(tiny(tmp_path / "run", steps=9, loss=LossSettings(perceptual="turns")))


@pytest.mark.usefixtures("short")
def test_its_weight_and_start_are_those_that_are_given(tmp_path: Path) -> None:
    found = {}
    for name, loss in (
        ("none", LossSettings()),
        ("never", LossSettings(perceptual="patches", perceptual_start=1.0)),
        ("nothing", LossSettings(perceptual="patches", perceptual_weight=0.0, perceptual_start=0.0)),
        ("much", LossSettings(perceptual="patches", perceptual_weight=50.0, perceptual_start=0.0)),
    ):
        train_vqvae(tiny(tmp_path / name, loss=loss))
        found[name] = load_codec(tmp_path / name).state_dict()
    for name in ("never", "nothing"):
        assert all(torch.equal(tensor, found["none"][key]) for key, tensor in found[name].items()), name
    assert not torch.equal(found["much"]["decoder.stem.weight"], found["none"]["decoder.stem.weight"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--loss.perceptual", "ownn"], "unknown perceptual loss 'ownn', available: own"),
        (["--loss.perceptual-weight", "1"], "--loss.perceptual-weight goes with --loss.perceptual"),
        (["--loss.perceptual", "./nowhere"], "nowhere does not exist"),
        (["--loss.perceptual", "lpips-x"], "must be lpips-alex, lpips-vgg or lpips-squeeze"),
        (["--loss.perceptual", "own", "--loss.perceptual-start", "1.5"], "--loss.perceptual-start must be between 0"),
        (["--freeze", "encoder"], "--freeze encoder needs a codec to start from"),
        (["--freeze", "encoder", "decoder", "--from", "x"], "leaves no network to train"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(words: list[str], told: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["train-vqvae", "--data", "digits", "--out", str(tmp_path / "run"), *words]) in (2, 3)
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_model_of_transformers_is_a_term(tmp_path: Path, capsys: Any) -> None:
    from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model, ResNetConfig, ResNetModel

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=7)).save_pretrained(tmp_path / "dino")
    widths: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    ResNetModel(ResNetConfig(**widths, layer_type="basic")).save_pretrained(tmp_path / "resnet")
    BertModel(BertConfig(**sizes, intermediate_size=16, vocab_size=50)).save_pretrained(tmp_path / "bert")
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name in ("dino", "resnet"):
        making = Making(str(tmp_path / name), spec_of((16, 16), 3), None, 0, 0, lambda _: None)
        term = kind_of(making.name)(making).frozen()
        copies = (images * 0.5).requires_grad_()
        (gradient,) = torch.autograd.grad(term(images, copies), copies)
        assert (gradient.flatten(1).norm(dim=1) > 0).all()
        assert float(term(images, images)) == pytest.approx(0, abs=1e-10)
    loss = LossSettings(perceptual=str(tmp_path / "dino"), perceptual_start=0.0)
    train_vqvae(tiny(tmp_path / "run", loss=loss, steps=3))
    config = json.loads((tmp_path / "run/vqvae-training/config.json").read_text())
    assert set(config["inputs"]) == {"data", "perceptual"}
    Dinov2Model(Dinov2Config(**sizes, image_size=28, patch_size=7)).save_pretrained(tmp_path / "dino")
    with pytest.raises(UsageError, match="the content of perceptual"):  # other weights are another loss
        train_vqvae(tiny(tmp_path / "run", loss=loss, steps=4))
    words = ["train-vqvae", "--data", "digits", "--out", str(tmp_path / "no"), "--loss.perceptual"]
    capsys.readouterr()
    assert main([*words, str(tmp_path / "bert")]) == 3
    assert "takes no images" in capsys.readouterr().err


@pytest.mark.usefixtures("short")
def test_a_frozen_encoder_keeps_codes_id_and_prior(tmp_path: Path, capsys: Any) -> None:
    train_vqvae(tiny(tmp_path / "base", loss=LossSettings()))
    base = load_codec(tmp_path / "base")
    frozen = tiny(tmp_path / "sharp", from_codec=str(tmp_path / "base"), freeze=("encoder", "quantizer"))
    train_vqvae(frozen)
    sharp = load_codec(tmp_path / "sharp")
    assert sharp.codec_id == base.codec_id
    before, after = base.state_dict(), sharp.state_dict()
    same = {name: torch.equal(before[name], after[name]) for name in before}
    assert all(equal for name, equal in same.items() if not name.startswith("decoder."))
    assert not any(equal for name, equal in same.items() if name.startswith("decoder.") and "weight" in name)
    out = str(tmp_path / "base")
    for words in (
        ["extract-codes", "--codec", out, "--data", "digits", "--out", f"{out}/codes"],
        ["train-prior", "--codes", f"{out}/codes", "--out", out, "--steps", "2"],
        ["assemble", "--codec", str(tmp_path / "sharp"), "--prior", out, "--out", str(tmp_path / "model")],
        ["generate", "--model", str(tmp_path / "model"), "--num-images", "2", "--out", str(tmp_path / "samples")],
    ):
        assert main(words) == 0, capsys.readouterr().err
