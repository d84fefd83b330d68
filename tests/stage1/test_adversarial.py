"""The discriminator, its pull, what judges a codec while it trains, and which weights are kept."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from killing import killed_and_run_again
from torch import Tensor

from stage1_vqvae.adversary import AdversaryTraining, Measured
from stage1_vqvae.discriminator import PENALTY, Discriminator, adversary_of
from stage1_vqvae.held_out import IN_A_ROW, HeldOutJudge, Kept
from stage1_vqvae.model import load_codec
from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.settings import LossSettings, ModelSettings, TrainVQVAE
from stage1_vqvae.train import train_vqvae
from vq_prior.cli import main
from vq_prior.core.disk.checkpoints import latest_checkpoint
from vq_prior.core.processes.runtime import start_runtime
from vq_prior.core.spec import CodeSpec, LevelSpec
from vq_prior.judge.fingerprint import fingerprint

SPEC = CodeSpec(2, (8, 8), (LevelSpec((4, 4), 32),))
KINDS = ["relativistic", "hinge"]


def discriminator(kind: str, spec: CodeSpec = SPEC) -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(spec, kind=kind, pull=0.5, pulls_from=0.5)


def pictures(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_its_loss_is_that_of_its_paper(kind: str) -> None:
    network = discriminator(kind)
    images, copies = pictures(0, 5, 2, 8, 8), pictures(1, 5, 2, 8, 8)
    terms = network(images, copies)
    with torch.no_grad():
        real, fake = network.logits(images).numpy(), network.logits(copies).numpy()
    if kind == "hinge":
        wanted = np.maximum(1 - real, 0).mean() + np.maximum(1 + fake, 0).mean()
        pull = -fake.mean()
    else:
        wanted = np.log1p(np.exp(fake - real)).mean()
        pull = np.log1p(np.exp(real - fake)).mean()
    assert float(terms[kind].detach()) == pytest.approx(wanted, rel=1e-5)
    assert float(network.judged(images, copies)["adversarial"].detach()) == pytest.approx(pull, rel=1e-5)
    assert float(terms["accuracy"]) == pytest.approx((real > fake).mean())
    for name, values in (("r1", images), ("r2", copies)):  # by differences along random directions
        direction = pictures(9, *values.shape) / 50
        with torch.no_grad():
            after, before = (network.logits(values + sign * direction).sum(1) for sign in (1, -1))
        asked = values.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network.logits(asked).sum(), asked)
        torch.testing.assert_close((after - before) / 2, (gradient * direction).flatten(1).sum(1), rtol=0.2, atol=2e-4)
        squared = gradient.square().flatten(1).sum(1).mean() / real.shape[1]
        assert float(terms[name].detach()) == pytest.approx(PENALTY / 2 * float(squared), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(16,), (8, 8), (8, 8, 8)])
def test_it_works_on_any_number_of_axes_and_its_penalties_reach_its_weights(kind: str, shape: tuple[int, ...]) -> None:
    network = discriminator(kind, CodeSpec(1, shape, (LevelSpec(tuple(s // 4 for s in shape), 32),)))
    terms = network(pictures(0, 4, 1, *shape), pictures(1, 4, 1, *shape))
    (terms["r1"] + terms["r2"]).backward()
    weights = [weight for weight in network.parameters() if weight.ndim > 1]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in weights)
    assert any(float(weight.grad.abs().max()) > 0 for weight in weights)  # type: ignore[union-attr]


def test_it_learns_to_tell_blurred_pictures_apart() -> None:
    spec = CodeSpec(1, (16, 16), (LevelSpec((4, 4), 32),))
    make = adversary_of(LossSettings(adversarial="relativistic"))
    assert make is not None
    ours = AdversaryTraining(make, spec, start_runtime("fp32"), seed=0, learning_rate=3e-3, betas=(0.5, 0.9))
    for step in range(60):
        images = pictures(step, 32, 1, 16, 16)
        numbers, _ = ours.passes([(images, F.avg_pool2d(images, 3, 1, 1), 1.0)], 1.0)
        ours.step(3e-3)
    assert float(numbers["discriminator_accuracy"]) > 0.95
    assert float(numbers["discriminator_logit_of_data"]) > float(numbers["discriminator_logit_of_copies"])


def test_gradients_are_measured_and_brought_to_the_length_that_is_wanted() -> None:
    copies = pictures(0, 3, 4).requires_grad_()
    others, own = torch.zeros(()), torch.zeros(())
    first, second = Measured.apply(copies, 1.0, others), Measured.apply(copies, 0.25, own)
    ((first * 2).sum() + (second**2).sum()).backward()
    torch.testing.assert_close(copies.grad, 2 + 0.25 * 2 * copies.detach())
    assert float(others) == pytest.approx(4 * 12)
    assert float(own) == pytest.approx(float((2 * copies.detach()).square().sum()), rel=1e-5)
    make = adversary_of(LossSettings(adversarial="hinge", adversarial_weight=0.5, adversarial_start=0.4))
    assert make is not None
    ours = AdversaryTraining(make, SPEC, start_runtime("fp32"), seed=0, learning_rate=1e-3, betas=(0.5, 0.9))
    assert [ours.learns(at) for at in (0.1, 0.2, 0.9)] == [False, True, True]
    assert ours.factor(0.9) == 0.0  # nothing is measured yet
    ours.note_lengths(4.0, 0.01)
    assert [ours.factor(at) for at in (0.3, 0.45, 0.9)] == pytest.approx([0.0, 0.5 * 0.5 * 20, 0.5 * 20])
    ours.note_lengths(8.0, 0.01)
    assert ours.factor(0.9) == pytest.approx(0.5 * np.sqrt((0.95 * 4 + 0.05 * 8) / 0.01))
    assert [step for step in range(12) if ours.starts_to_pull(step, 11)] == [5]  # of 11, the first at or after 0.4
    ours.stopped_at = 7
    assert (ours.learns(0.9), ours.joins(0.9), ours.pulls(0.9)) == (False, False, 0.0)


def test_the_best_weights_are_kept_and_a_rise_is_told() -> None:
    kept = Kept()
    distances = [3.0, 1.0, 1.01, 1.1, 1.2, 1.3]
    told = [kept.note(step, each, {"w": torch.tensor(float(step))}) for step, each in enumerate(distances)]
    assert told == [False] * (2 + IN_A_ROW) + [True]
    assert (kept.step, kept.distance, float(kept.tensors["w"])) == (1, 1.0, 1.0)
    again = Kept()
    again.load(json.loads(json.dumps(kept.state())), kept.tensors)
    assert (again.step, again.distance, again.worse) == (kept.step, kept.distance, kept.worse)


def tiny(out: Path, **changes: object) -> TrainVQVAE:
    base = TrainVQVAE(
        "digits",
        out,
        steps=12,
        batch_size=16,
        checkpoint_every=5,
        log_every=3,
        warmup_steps=2,
        num_workers=1,
        precision="fp32",
        judge_every=2,
        model=ModelSettings(width=16, num_residual_blocks=1),
        quantizer=QuantizerSettings(num_codes=32, code_dim=4, decay=0.8, revive_below=0.2),
        loss=LossSettings(adversarial="relativistic"),
    )
    return replace(base, **changes)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage1_vqvae.modalities.pictures.classifier.STEPS", 10)


@pytest.mark.usefixtures("short")
def test_a_training_with_it_is_told_resumed_and_ends_in_the_same_bits(tmp_path: Path) -> None:
    train_vqvae(tiny(tmp_path / "run"))
    folder = tmp_path / "run" / "vqvae-training"
    lines = {line["step"]: line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())}
    assert [step for step, line in lines.items() if "rfid" in line] == [2, 4, 6, 8, 10, 12]
    assert [step for step, line in lines.items() if "discriminator_relativistic" in line] == [4, 6, 8, 9, 10, 12]
    assert [step for step, line in lines.items() if "adversarial" in line] == [8, 9, 10, 12]
    measured = json.loads((tmp_path / "run/vqvae/training.json").read_text())["measured"]
    best = min((line["rfid"], step) for step, line in lines.items() if "rfid" in line)
    assert (measured["rfid"], measured["kept_step"]) == pytest.approx(best)

    killed_and_run_again(lambda: train_vqvae(tiny(tmp_path / "again")), at=[1, 4, 8])
    assert fingerprint(tmp_path / "again") == fingerprint(tmp_path / "run")
    train_vqvae(tiny(tmp_path / "again"))  # finished, whichever weights were kept


@pytest.mark.usefixtures("short")
def test_the_codec_of_before_the_term_is_judged_however_rarely_that_is_asked_for(tmp_path: Path) -> None:
    train_vqvae(tiny(tmp_path / "run", judge_every=1000))
    lines = (tmp_path / "run" / "vqvae-training" / "metrics.jsonl").read_text().splitlines()
    assert [line["step"] for line in map(json.loads, lines) if "rfid" in line] == [6, 12]


@pytest.mark.usefixtures("short")
def test_a_term_that_makes_it_worse_is_ended_and_the_codec_of_before_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    real = HeldOutJudge.distance

    def worse_and_worse(self: HeldOutJudge, model: Any, runtime: Any) -> float:
        calls.append(real(self, model, runtime))
        return 1.0 + 0.1 * len(calls)

    calls: list[float] = []
    monkeypatch.setattr(HeldOutJudge, "distance", worse_and_worse)
    train_vqvae(tiny(tmp_path / "run", steps=20))
    out = capsys.readouterr().out
    assert "the discriminator is ended, the weights of step 2 are kept" in out
    lines = [json.loads(line) for line in (tmp_path / "run/vqvae-training/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "rfid" in line] == list(range(2, 21, 2))
    ended = int(out.partition(": held-out reconstructions are at distance")[0].rpartition("step ")[2])
    assert ended == 12 + 2 * (IN_A_ROW - 1)  # worse from the first time on that it had pulled
    assert [line["step"] for line in lines if "adversarial" in line][-1] == ended
    checkpoint, _ = latest_checkpoint(tmp_path / "run" / "vqvae-training" / "checkpoints")
    assert checkpoint is not None
    saved = load_codec(tmp_path / "run").state_dict()
    assert all(torch.equal(tensor, checkpoint.averages["kept"][name]) for name, tensor in saved.items())
    assert json.loads((tmp_path / "run/vqvae/training.json").read_text())["measured"]["kept_step"] == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--loss.adversarial-weight", "1"], "--loss.adversarial-weight goes with --loss.adversarial"),
        (
            ["--loss.adversarial", "hinge", "--loss.adversarial-start", "2"],
            "--loss.adversarial-start must be between 0",
        ),
        (["--judge-every", "0"], "--judge-every must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(words: list[str], told: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["train-vqvae", "--data", "digits", "--out", str(tmp_path / "run"), *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
