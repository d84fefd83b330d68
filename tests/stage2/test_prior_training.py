"""Training: it learns, it resumes to the same bits, it refuses what it cannot use."""

import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from code_stores import CODEC_ID, SPEC, write_store

from stage1_vqvae.modalities.pictures import PICTURES
from stage2_prior import run, train
from stage2_prior.calibrate import ROWS_PER_CALL, calibrate, candidates, held_out_nats
from stage2_prior.forward import Packed, pack
from stage2_prior.prior import CausalPrior, SamplingDefaults, load_prior
from stage2_prior.settings import CodeFacts, PriorModel, TrainPrior, check, resolve
from stage2_prior.train import train_prior
from vq_prior.core.disk.checkpoints import load_checkpoint
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.errors import ArtifactError, NumericError, Stopped, UsageError
from vq_prior.core.spec import CodeSpec, LevelSpec


def tiny(codes: Path, out: Path, **changes: Any) -> TrainPrior:
    """Return settings of a run of some seconds."""
    settings = TrainPrior(
        codes,
        out,
        steps=12,
        batch_size=8,
        checkpoint_every=4,
        eval_every=3,
        warmup_steps=2,
        model=PriorModel(num_layers=2, hidden_size=16, num_heads=2),
    )
    return dataclasses.replace(settings, **changes)


def final_bytes(out: Path) -> bytes:
    return (out / "prior/model.safetensors").read_bytes()


class CellsCodec:
    """A codec that paints each cell of a 2 x 3 grid as one grey pixel."""

    spec = SPEC
    codec_id = CODEC_ID
    modality = PICTURES

    def encode(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (((images[:, 0] + 1) * 5.5).round().to(torch.int64),)

    def decode(self, codes: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return codes[0][:, None].float() / 5.5 - 1


def test_it_learns_what_no_baseline_can_and_writes_everything(
    code_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = PriorModel(num_layers=2, hidden_size=48, num_heads=2)
    settings = tiny(code_store, tmp_path / "run", steps=300, batch_size=64, eval_every=60, model=model)
    settings = dataclasses.replace(settings, token_dropout=0.0, learning_rate=5e-3, checkpoint_every=300)
    folder = train_prior(settings, CellsCodec())
    out, err = capfd.readouterr()
    assert folder == tmp_path / "run/prior"
    assert out.startswith("device cpu")
    assert f"next: vq-prior assemble --codec CODEC --prior {folder}" in out.splitlines()[-1]
    assert err == ""
    lines = [json.loads(line) for line in (tmp_path / "run/prior-training/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [60, 120, 180, 240, 300]
    best = min(line["held_out_nats"] for line in lines)
    assert best < lines[-1]["previous_token"] - 0.3 < lines[-1]["unigram"] < lines[-1]["uniform"] + 0.1
    assert list((tmp_path / "run/prior-training/images").iterdir())
    prior = load_prior(tmp_path / "run")
    assert prior.codec_id == CODEC_ID
    assert prior.trained_steps == 300
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "prior_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "training.json",
    ]


def test_a_finished_run_says_so_and_stays(code_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_prior(tiny(code_store, tmp_path))
    stamp = (tmp_path / "prior/model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    train_prior(tiny(code_store, tmp_path, checkpoint_every=5))
    assert "is finished (12 steps)" in capsys.readouterr().out
    assert (tmp_path / "prior/model.safetensors").stat().st_mtime_ns == stamp


def test_other_settings_are_refused_more_steps_continue_and_overwrite_starts_anew(
    code_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_prior(tiny(code_store, tmp_path))
    first = final_bytes(tmp_path)
    with pytest.raises(UsageError, match=r"learning-rate .* -> 0.5"):
        train_prior(tiny(code_store, tmp_path, learning_rate=0.5))
    with pytest.raises(UsageError, match=r"model.num-layers 2 -> 3"):
        train_prior(tiny(code_store, tmp_path, model=PriorModel(num_layers=3, hidden_size=16, num_heads=2)))
    capsys.readouterr()
    train_prior(tiny(code_store, tmp_path, steps=15))
    assert "continuing at step 12 of 15" in capsys.readouterr().out
    assert load_prior(tmp_path).trained_steps == 15
    train_prior(tiny(code_store, tmp_path, overwrite=True))
    assert final_bytes(tmp_path) == first


@pytest.mark.parametrize(("stop_after", "optimizer"), [(1, "adamw"), (4, "muon"), (7, "adamw"), (11, "muon")])
def test_a_run_cut_anywhere_ends_in_the_same_bits(
    code_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int, optimizer: str
) -> None:
    train_prior(tiny(code_store, tmp_path / "whole", optimizer=optimizer))
    update, done = train.update, []

    def cut(training: run.Training) -> dict[str, torch.Tensor]:
        if len(done) == stop_after:
            raise KeyboardInterrupt  # nothing after this moment is written, as if the process were gone
        done.append(1)
        return update(training)

    monkeypatch.setattr(train, "update", cut)
    with pytest.raises(KeyboardInterrupt):
        train_prior(tiny(code_store, tmp_path / "cut", optimizer=optimizer))
    monkeypatch.setattr(train, "update", update)
    train_prior(tiny(code_store, tmp_path / "cut", optimizer=optimizer))
    assert final_bytes(tmp_path / "cut") == final_bytes(tmp_path / "whole")
    last = [load_checkpoint(tmp_path / name / "prior-training/checkpoints/step-00000012") for name in ("whole", "cut")]
    assert last[0].state == last[1].state
    for group in ("modules", "optimizers", "averages"):
        for name, tensors in getattr(last[0], group).items():
            for key, tensor in tensors.items():
                assert torch.equal(tensor, getattr(last[1], group)[name][key])


def test_accumulated_steps_follow_whole_ones(code_store: Path, tmp_path: Path) -> None:
    weights = []
    for pieces in (1, 3):
        settings = tiny(code_store, tmp_path / str(pieces), gradient_accumulation_steps=pieces, precision="fp32")
        weights.append(load_prior(train_prior(settings)).model.state_dict())
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-5)
    with pytest.raises(UsageError, match="at least 9, one row for each process and accumulation step, got 8"):
        train_prior(tiny(code_store, tmp_path / "many", gradient_accumulation_steps=9))


def test_muon_moves_the_matrices_of_the_blocks_and_adamw_the_rest(code_store: Path, tmp_path: Path) -> None:
    for name in ("adamw", "muon"):
        train_prior(tiny(code_store, tmp_path / name, steps=3, optimizer=name))
    one, other = (
        load_checkpoint(tmp_path / name / "prior-training/checkpoints/step-00000003") for name in ("adamw", "muon")
    )
    assert one.optimizers.keys() == {"adamw"}
    moved_by_muon = {key.removesuffix("/momentum_buffer") for key in other.optimizers["muon"]}
    assert moved_by_muon == {n for n, w in one.modules["prior"].items() if ".layers." in n and w.ndim == 2}
    assert not any(key.rpartition("/")[0] in moved_by_muon for key in other.optimizers["adamw"])
    assert not any(torch.equal(one.modules["prior"][name], other.modules["prior"][name]) for name in moved_by_muon)


def test_balanced_steps_show_every_class_equally_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = write_store(tmp_path / "codes", num_rows=41, num_classes=40)  # one class has two rows, all others one
    seen: list[int] = []
    monkeypatch.setattr("stage2_prior.train.require_finite", lambda _folder, _step, rows, *_, **__: seen.extend(rows))
    train_prior(tiny(codes, tmp_path / "out", steps=10, batch_size=len(CodeStore.open(codes, "train")), balance=True))
    labels = CodeStore.open(codes, "train").rows(np.array(seen))["label"]
    counts = np.unique(labels, return_counts=True)[1]
    assert np.ptp(counts) <= 2
    unlabelled = write_store(tmp_path / "none", num_rows=30, labelled=False)
    with pytest.raises(UsageError, match="--balance needs classes"):
        train_prior(tiny(unlabelled, tmp_path / "other", balance=True))


def test_sigterm_saves_and_stops(code_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_prior(tiny(code_store, tmp_path / "whole"))
    update = train.update

    def signalled(training: run.Training) -> torch.Tensor:
        if training.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(training)

    monkeypatch.setattr(train, "update", signalled)
    with pytest.raises(Stopped, match="after step 7, state saved; run the same command") as stopped:
        train_prior(tiny(code_store, tmp_path / "cut"))
    assert stopped.value.exit_code == 75
    monkeypatch.setattr(train, "update", update)
    train_prior(tiny(code_store, tmp_path / "cut"))
    assert final_bytes(tmp_path / "cut") == final_bytes(tmp_path / "whole")


def test_a_damaged_checkpoint_is_passed_over(
    code_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_prior(tiny(code_store, tmp_path))
    first = final_bytes(tmp_path)
    shutil.rmtree(tmp_path / "prior")
    file = tmp_path / "prior-training/checkpoints/step-00000012/modules.prior.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    capsys.readouterr()
    train_prior(tiny(code_store, tmp_path))
    out = capsys.readouterr().out
    assert "passed over checkpoint step-00000012" in out
    assert "continuing at step 8" in out
    assert final_bytes(tmp_path) == first


def test_it_stops_early_and_keeps_the_best(
    code_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.0, 9.9])
    monkeypatch.setattr(train, "held_out_loss", lambda _: (next(losses), []))
    train_prior(tiny(code_store, tmp_path, steps=60, patience=2))
    out = capsys.readouterr().out
    assert "held-out nats per token 2.0000" in out
    assert "best at step 6, stopped early at step 12, 2 measurements without improvement" in out
    train_prior(tiny(code_store, tmp_path, steps=60, patience=2))
    assert "is finished (stopped early at step 12" in capsys.readouterr().out


def test_a_gradient_that_is_not_finite_stops_before_the_update(
    code_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(t, step):
        sums = passes(t, step)
        if step == 5:
            next(t.prior.model.parameters()).grad.view(-1)[0] = float("nan")
        return sums

    passes = train.passes
    monkeypatch.setattr(train, "passes", spoil)
    with pytest.raises(NumericError, match="not finite at step 6"):
        train_prior(tiny(code_store, tmp_path))
    assert not (tmp_path / "prior").exists()


def test_a_dry_run_says_the_plan_and_creates_nothing(
    code_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_prior(tiny(code_store, tmp_path / "run", dry_run=True))
    out = capsys.readouterr().out
    assert "model.hidden-size: 16" in out
    assert "6 tokens, vocabulary 16" in out
    assert "s (12 x" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("labelled", [True, False])
def test_several_levels_and_no_labels(tmp_path: Path, labelled: bool) -> None:
    spec = CodeSpec(1, (8,), (LevelSpec((2,), 4), LevelSpec((4,), 300)))
    write_store(tmp_path / "codes", spec, num_rows=60, labelled=labelled)
    train_prior(tiny(tmp_path / "codes", tmp_path / "run"))
    prior = load_prior(tmp_path / "run")
    assert prior.layout.num_classes == (3 if labelled else 0)
    whole = [CodeStore.open(tmp_path / "codes", split) for split in ("train", "validation")]
    occur = {int(code) for store in whole for code in store.rows(np.arange(len(store)))["codes.1"].flatten()}
    assert prior.layout.kept == (None, tuple(sorted(occur)))  # of 300 codes fewer than 9 in 10 occur
    assert prior.layout.vocab_size == 4 + len(occur) + prior.layout.num_classes + 1
    assert prior.sampling.guidance_scale == 1.0 or labelled


def test_a_damaged_store_a_stranger_and_a_missing_one_are_refused(code_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        train_prior(tiny(tmp_path / "nowhere", tmp_path / "run"))
    stranger = CellsCodec()
    stranger.codec_id = "e" * 64
    with pytest.raises(ArtifactError, match=f"{CODEC_ID}.*{'e' * 64}"):
        train_prior(tiny(code_store, tmp_path / "run"), stranger)
    shutil.copytree(code_store, tmp_path / "codes")
    shard = tmp_path / "codes/train/shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="damaged"):
        train_prior(tiny(tmp_path / "codes", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -5}, r"--steps must be at least 1, got -5; change it or leave it out"),
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"from_model": "runs/a", "size": "base", "model": PriorModel()}, "--size base cannot go with --from"),
        ({"learning_rate": float("nan")}, "--learning-rate must be a number above 0, at most 1, got nan"),
        ({"learning_rate": 0.0}, "--learning-rate .* got 0"),
        ({"label_dropout": 1.5}, "--label-dropout .* got 1.5"),
        ({"token_dropout": float("nan")}, "--token-dropout"),
        ({"seed": -1}, "--seed must be between 0 and 9223372036854775807, got -1"),
        ({"seed": 2**63}, "--seed must be between 0 and 9223372036854775807, got 9223372036854775808"),
        ({"patience": 0}, "--patience must be at least 1, got 0"),
        ({"weight_decay": float("inf")}, "--weight-decay"),
        ({"model": PriorModel(num_layers=0)}, "--model.num-layers must be at least 1, got 0"),
        ({"model": PriorModel(hidden_size=48, num_heads=5)}, "--model.num-heads must divide .* 48 .* got 5"),
        ({"model": PriorModel(num_heads=4, num_key_value_heads=3)}, "--model.num-key-value-heads .* got 3"),
    ],
)
def test_a_bad_setting_is_refused_by_its_flag(
    code_store: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train_prior(tiny(code_store, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_defaults_without_a_gpu_are_a_model_of_about_a_million_parameters(tmp_path: Path) -> None:
    settings = TrainPrior(tmp_path, tmp_path)
    check(settings)
    resolved = resolve(settings, CodeFacts(64, 512, 50_000), "cpu")
    again = resolve(resolved, CodeFacts(64, 512, 50_000), "cpu")
    assert again == resolved
    m = resolved.model
    assert m.hidden_size is not None
    assert m.num_layers is not None
    assert m.intermediate_size is not None
    size = m.num_layers * (4 * m.hidden_size**2 + 3 * m.hidden_size * m.intermediate_size) + 2 * 523 * m.hidden_size
    assert 0.7e6 < size < 1.4e6
    chosen = {rows: resolve(settings, CodeFacts(64, 512, rows), "cpu").optimizer for rows in (1000, 12_000, 50_000)}
    assert chosen == {1000: "adamw", 12_000: "adamw", 50_000: "muon"}
    longer = resolve(dataclasses.replace(settings, steps=9), CodeFacts(64, 512, 50_000), "cpu")
    assert dataclasses.replace(longer, steps=resolved.steps) == resolved  # a run may grow


@pytest.mark.parametrize(
    ("size", "sizes"),
    [("tiny", (4, 96, 3, 3)), ("small", (5, 128, 4, 4)), ("base", (8, 320, 5, 5)), ("large", (12, 768, 12, 4))],
)
def test_a_size_fills_in_what_the_model_leaves_open(
    tmp_path: Path, size: Any, sizes: tuple[int, int, int, int]
) -> None:
    for device in ("cpu", "cuda"):
        m = resolve(TrainPrior(tmp_path, tmp_path, size=size), CodeFacts(64, 512, 50_000), device).model
        assert (m.num_layers, m.hidden_size, m.num_heads, m.num_key_value_heads) == sizes
    own = TrainPrior(tmp_path, tmp_path, size=size, model=PriorModel(num_layers=3, num_heads=2))
    m = resolve(own, CodeFacts(64, 512, 50_000), "cpu").model
    assert (m.num_layers, m.hidden_size, m.num_heads) == (3, sizes[1], 2)


def test_sizes_are_told_before_the_first_step(
    code_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_prior(tiny(code_store, tmp_path))
    lines = capsys.readouterr().out.splitlines()
    (told,) = (n for n, line in enumerate(lines) if "parameters" in line and "MiB of memory" in line)
    (time,) = (n for n, line in enumerate(lines) if line.startswith("estimated time"))
    assert told < time < next(n for n, line in enumerate(lines) if "step 3/12" in line)


def test_calibration_measures_the_distribution_that_is_sampled(make_prior: Callable[..., CausalPrior]) -> None:
    prior = make_prior()
    generator = np.random.default_rng(0)
    tokens = torch.from_numpy(generator.integers(0, 12, (20, 6)))
    labels = torch.arange(20) % 3
    plain = held_out_nats(prior, tokens, labels, [SamplingDefaults()])[0]
    assert plain == pytest.approx(-float(prior.log_probs(tokens, labels).mean()), rel=1e-6)
    # Random rows under a sharp random prior: flatter is better, and guidance only sharpens.
    measured = calibrate(prior, tokens, labels)
    scores = dict(measured.scores)
    assert scores[SamplingDefaults(1.0, 1.0)] < scores[SamplingDefaults(0.9, 1.0)] < scores[SamplingDefaults(0.8, 1.0)]
    assert scores[measured.best] <= 1.02 * min(scores.values())


def test_calibration_packs_the_weights_once_and_no_bit_depends_on_it(
    make_prior: Callable[..., CausalPrior], monkeypatch: pytest.MonkeyPatch
) -> None:
    packings = []

    def counted(model: torch.nn.Module) -> Packed:
        packings.append(model)
        return pack(model)

    prior = make_prior()
    rows = torch.arange(2 * ROWS_PER_CALL + 3)
    tokens = (rows[:, None] * torch.arange(1, prior.layout.num_tokens + 1)) % prior.layout.num_codes
    monkeypatch.setattr("stage2_prior.prior.pack", counted)
    once = held_out_nats(prior, tokens, rows % 3, candidates(prior))
    assert len(packings) == 1
    monkeypatch.setattr(CausalPrior, "packed", lambda self: self)
    assert held_out_nats(prior, tokens, rows % 3, candidates(prior)) == once
    assert len(packings) == 1 + 2 * 3  # with a class and without, three calls


def test_calibration_takes_the_strongest_guidance_that_costs_little(make_prior: Callable[..., CausalPrior]) -> None:
    def measure(*arguments: Any) -> list[float]:
        return [2.0 + 0.12 * (s.guidance_scale - 1) + 0.12 * abs(s.temperature - 1) for s in arguments[3]]

    prior = make_prior()
    tokens, labels = torch.zeros((1, 6), dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    assert calibrate(prior, tokens, labels, measure).best == SamplingDefaults(0.95, 1.25)
    prior.unconditional = False
    assert calibrate(prior, tokens, labels, measure).best == SamplingDefaults(0.8, 1.0)
