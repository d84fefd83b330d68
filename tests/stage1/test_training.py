"""Training, extraction and reconstruction on the digits, for real and for a moment."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import killed_and_run_again

from stage1_vqvae import extract
from stage1_vqvae import passes as step_passes
from stage1_vqvae import run as one_run
from stage1_vqvae.data.loading import load_rows
from stage1_vqvae.data.sources import open_data
from stage1_vqvae.evaluate import evaluate_codec
from stage1_vqvae.extract import extract_codes
from stage1_vqvae.fast.convolutions import ROWS
from stage1_vqvae.modalities.pictures import PICTURES
from stage1_vqvae.modalities.pictures.values import Transform
from stage1_vqvae.model import load_codec
from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.settings import ExtractCodes, ModelSettings, Reconstruct, TrainVQVAE
from stage1_vqvae.train import train_vqvae
from vq_prior.core.disk.artifacts import staging_path
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.errors import ArtifactError, NumericError, Stopped, UsageError

STEPS = 12


def tiny(out: Path, **changes: object) -> TrainVQVAE:
    base = TrainVQVAE(
        "digits",
        out,
        steps=STEPS,
        batch_size=16,
        checkpoint_every=4,
        log_every=5,
        warmup_steps=2,
        num_workers=1,
        model=ModelSettings(width=16, num_residual_blocks=1),
        quantizer=QuantizerSettings(num_codes=32, code_dim=4, decay=0.8, revive_below=0.2),
    )
    return replace(base, **changes)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run."""
    out = tmp_path_factory.mktemp("run") / "run"
    train_vqvae(tiny(out))
    return out


def test_run_leaves_what_the_design_names(run: Path) -> None:
    assert set(os.listdir(run)) == {"vqvae", "vqvae-training"}
    assert set(os.listdir(run / "vqvae")) == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "training.json",
        "manifest.json",
    }
    training = run / "vqvae-training"
    assert set(os.listdir(training)) == {"config.json", "metrics.jsonl", "checkpoints", "images"}
    assert sorted(os.listdir(training / "checkpoints")) == ["step-00000008", "step-00000012"]
    assert sorted(os.listdir(training / "images")) == [f"step-{step:08d}.png" for step in (4, 8, 12)]
    lines = [json.loads(line) for line in (training / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert {"reconstruction", "commitment", "usage", "perplexity", "num_dead", "learning_rate"} <= lines[0].keys()


def test_finished_run_says_so_and_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(run)
    train_vqvae(tiny(run, num_workers=2))
    assert "is finished (12 steps); nothing to do" in capsys.readouterr().out
    assert files_of(run) == before


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [(name, None) for name in ("ema", "nearest", "simvq", "fsq", "lfq", "gumbel")] + [("nearest", "muon")],
)
def test_resumed_run_ends_in_the_same_bits(tmp_path: Path, name: str, optimizer: str | None) -> None:
    quantizer = QuantizerSettings(name=name, num_codes=64)
    changes = {"quantizer": quantizer, "augment": True, "schedule": "cosine", "optimizer": optimizer}
    whole = train_vqvae(tiny(tmp_path / "whole", **changes))

    killed_and_run_again(lambda: train_vqvae(tiny(tmp_path / "cut", **changes)), at=[3, 6, 11])
    resumed = tmp_path / "cut" / "vqvae"
    assert files_of(resumed) == files_of(whole)


@pytest.mark.parametrize(
    ("name", "optimizer"), [("ema", None), ("nearest", None), ("gumbel", None), ("ema", "muon"), ("nearest", "muon")]
)
def test_accumulated_steps_follow_whole_ones(tmp_path: Path, name: str, optimizer: str | None) -> None:
    quantizer = QuantizerSettings(name=name, num_codes=64, code_dim=4)
    codebooks = []
    for pieces in (1, 3):
        changes = {"quantizer": quantizer, "optimizer": optimizer, "gradient_accumulation_steps": pieces}
        settings = tiny(tmp_path / str(pieces), **changes)
        codebooks.append(load_codec(train_vqvae(settings)).quantizer.codebook.detach())
    # float32 sums in another order, through Adam, over 12 steps
    assert float((codebooks[1] - codebooks[0]).norm() / codebooks[0].norm()) < 1e-3


@pytest.mark.one_of
@pytest.mark.parametrize(
    ("network", "optimizer"), [("residual", None), ("residual", "muon"), ("bottleneck", "muon"), ("sonnet", "muon")]
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU sums gradients in its own order")
def test_pieces_and_threads_end_in_the_bits_of_whole_steps_in_bfloat16(
    tmp_path: Path, network: str, optimizer: str | None
) -> None:
    ended, threads = [], torch.get_num_threads()
    for pieces, count in ((1, threads), (2, threads), (4, threads), (1, 3 - min(2, threads))):
        model = ModelSettings(width=16, num_residual_blocks=1, network=network)
        changes = {"model": model, "batch_size": 4 * ROWS, "optimizer": optimizer, "precision": "bf16"}
        torch.set_num_threads(count)
        try:
            out = tmp_path / f"{pieces}-{count}"
            trained = train_vqvae(tiny(out, **changes, gradient_accumulation_steps=pieces))
        finally:
            torch.set_num_threads(threads)
        ended.append((trained / "model.safetensors").read_bytes())
    assert all(weights == ended[0] for weights in ended)


@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.fault("F23")
def test_a_collapsed_codebook_is_said_with_its_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fail: bool
) -> None:
    alone = QuantizerSettings(num_codes=512, code_dim=4, start=None, revive_below=None)
    # with every latent near 0 and codes of length 2, few codes are ever nearest
    settings = tiny(tmp_path / "run", quantizer=alone, fail_on_collapse=fail, learning_rate=1e-6)
    told = r"only \d+ of 512 codes were used over the last 80 images, up to step 5; revive dead codes: --quantizer"
    if fail:
        with pytest.raises(NumericError, match=told):
            train_vqvae(settings)
        assert not (tmp_path / "run" / "vqvae").exists()
    else:
        train_vqvae(settings)
        assert re.search(f"warning: {told}", capsys.readouterr().out)


def test_signal_saves_and_the_same_command_continues(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = one_run.batch_rows

    def signalled(num_rows: int, batch_size: int, seed: int, step: int) -> np.ndarray:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(num_rows, batch_size, seed, step)

    monkeypatch.setattr(one_run, "batch_rows", signalled)
    done = 6 if torch.cuda.is_available() else 7  # a GPU's next pictures are read a step ahead
    with pytest.raises(Stopped, match=f"after step {done}, state saved; run the same command") as caught:
        train_vqvae(tiny(tmp_path / "run"))
    assert caught.value.exit_code == 75
    monkeypatch.setattr(one_run, "batch_rows", real)
    assert files_of(train_vqvae(tiny(tmp_path / "run"))) == files_of(run / "vqvae")


def test_more_steps_continue_and_other_settings_are_refused(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    with pytest.raises(UsageError, match=r"batch-size 16 -> 32"):
        train_vqvae(tiny(tmp_path / "run", batch_size=32))
    with pytest.raises(UsageError, match=r"model\.width 16 -> 24"):
        train_vqvae(tiny(tmp_path / "run", model=ModelSettings(width=24, num_residual_blocks=1)))
    before = files_of(tmp_path / "run" / "vqvae")
    train_vqvae(tiny(tmp_path / "run", steps=STEPS + 4))
    assert files_of(tmp_path / "run" / "vqvae") != before
    train_vqvae(tiny(tmp_path / "run", overwrite=True))
    assert files_of(tmp_path / "run" / "vqvae") == before


def test_dry_run_and_failed_checks_create_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_vqvae(tiny(tmp_path / "run", dry_run=True))
    assert "nothing was written (--dry-run)" in capsys.readouterr().out
    for changes, error in (
        ({"data": str(tmp_path / "missing")}, ArtifactError),
        ({"steps": -5}, UsageError),
        ({"quantizer": QuantizerSettings(name="emma")}, UsageError),
    ):
        with pytest.raises(error):
            train_vqvae(tiny(tmp_path / "run", **changes))
    assert list(tmp_path.iterdir()) == []


def test_divergence_stops_before_the_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = step_passes.reconstruction_terms

    def poisoned(images: torch.Tensor, reconstruction: torch.Tensor, *, kind: str) -> dict[str, torch.Tensor]:
        poisoned.calls += 1
        scale = float("nan") if poisoned.calls == 7 else 1.0
        return real(images, reconstruction * scale, kind=kind)

    poisoned.calls = 0
    monkeypatch.setattr(step_passes, "reconstruction_terms", poisoned)
    with pytest.raises(NumericError, match="is not finite at step 7"):
        train_vqvae(tiny(tmp_path / "run"))
    assert not (tmp_path / "run" / "vqvae").exists()


def test_training_learns_the_digits(tmp_path: Path) -> None:
    settings = tiny(
        tmp_path / "run",
        steps=120,
        batch_size=64,
        learning_rate=4e-3,
        model=ModelSettings(width=32, num_residual_blocks=1),
        quantizer=QuantizerSettings(num_codes=64),
    )
    codec = load_codec(train_vqvae(settings))
    data = open_data("digits")
    transform = Transform(8, 8, 1)
    result = evaluate_codec(codec, load_rows(data.validation, PICTURES, transform))
    pixels = load_rows(data.train, PICTURES, transform).stored(range(len(data.train))) / 127.5 - 1
    # the mean picture, the best a codec without codes could do, has the variance about it as its error
    assert result["mse"] < 0.5 * float(((pixels - pixels.mean(0)) ** 2).mean())
    assert result["num_images"] == 89
    assert result["levels"][0]["usage"] > 0.5


def test_evaluation_agrees_with_numpy(run: Path) -> None:
    codec, data = load_codec(run), open_data("digits")
    pixels = load_rows(data.validation, PICTURES, Transform(8, 8, 1))
    result = evaluate_codec(codec, pixels)
    images = torch.from_numpy(pixels.stored(range(89))).movedim(-1, 1) / 127.5 - 1
    codes = codec.encode(images)
    errors = (codec.decode(codes).numpy() - images.numpy()) ** 2
    assert result["mse"] == pytest.approx(errors.mean(), rel=1e-5)
    counts = np.bincount(codes[0].numpy().ravel(), minlength=32)
    share = counts[counts > 0] / counts.sum()
    assert result["levels"][0]["usage"] == (counts > 0).mean()
    assert result["levels"][0]["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))


@pytest.fixture
def extraction(run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Extraction in shards of 500 rows, so that the digits give five."""
    monkeypatch.setattr(extract, "ROWS_PER_SHARD", 500)

    def extract_to(out: Path, **changes: object) -> Path:
        return extract_codes(replace(ExtractCodes(str(run), "digits", out, num_workers=1), **changes))

    return extract_to


def test_store_holds_the_codes_of_the_rows(run: Path, tmp_path: Path) -> None:
    out = extract_codes(ExtractCodes(str(run), "digits", tmp_path / "codes"))
    data, codec = open_data("digits"), load_codec(run)
    for split, rows in (("train", data.train), ("validation", data.validation)):
        store = CodeStore.open(out, split)
        store.verify()
        assert len(store) == len(rows)
        assert store.index.codec.id == codec.codec_id
        assert store.index.data.id == data.data_id
        some = np.array([0, 7, len(rows) - 1])
        values = store.rows(some)
        pixels = torch.from_numpy(load_rows(rows, PICTURES, Transform(8, 8, 1)).stored(some))
        expected = codec.encode(pixels.movedim(-1, 1) / 127.5 - 1)[0]
        assert np.array_equal(values["codes.0"], expected.numpy())
        assert np.array_equal(values["label"], rows.labels[some])
        assert np.array_equal(values["source_index"], rows.source_index[some])
        assert not values["view"].any()
        assert values["codes.0"].dtype == np.uint8


def test_store_bytes_do_not_depend_on_batch_size_or_interruption(
    extraction: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = files_of(extraction(tmp_path / "reference"))
    assert len(reference) == 1 + 4 + 1
    assert files_of(extraction(tmp_path / "small", batch_size=7, num_workers=2)) == reference
    torch.set_num_threads(2)  # two threads that decode and encode side by side
    try:
        assert files_of(extraction(tmp_path / "two", batch_size=50, num_workers=2)) == reference
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)

    class Killed(BaseException):
        """Stands for the end of the process."""

    real = extract.write_atomic

    def dying(path: Path, data: bytes) -> None:
        if path.name == "shard-00002.safetensors":
            raise Killed
        real(path, data)

    monkeypatch.setattr(extract, "write_atomic", dying)
    with pytest.raises(Killed):
        extraction(tmp_path / "cut")
    assert not (tmp_path / "cut").exists()
    kept = staging_path(tmp_path / "cut") / "store" / "train" / "shard-00001.safetensors"
    written = kept.stat().st_mtime_ns
    monkeypatch.setattr(extract, "write_atomic", real)
    seen = []
    monkeypatch.setattr(
        extract, "publish", lambda store, out: (seen.append(kept.stat().st_mtime_ns), os.rename(store, out))
    )
    assert files_of(extraction(tmp_path / "cut", batch_size=100)) == reference
    assert seen == [written]
    assert not staging_path(tmp_path / "cut").exists()


def test_finished_store_says_so_and_a_stranger_is_refused(
    extraction: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = extraction(tmp_path / "codes")
    extraction(out)
    assert "is finished (1708 + 89 rows); nothing to do" in capsys.readouterr().out
    other = train_vqvae(tiny(tmp_path / "other", steps=1))
    with pytest.raises(UsageError, match="another codec, other data, other conditions or other views"):
        extraction(out, codec=str(other))
    extraction(out, codec=str(other), overwrite=True)
    assert CodeStore.open(out).index.codec.id == load_codec(other).codec_id


def test_partial_work_for_another_request_is_dropped(extraction: Callable[..., Path], tmp_path: Path) -> None:
    reference = files_of(extraction(tmp_path / "reference"))
    shard = staging_path(tmp_path / "codes") / "store" / "train" / "shard-00000.safetensors"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"stale")
    assert files_of(extraction(tmp_path / "codes")) == reference


def test_reconstruct_writes_pairs_and_a_grid(run: Path, tmp_path: Path) -> None:
    from stage1_vqvae.evaluate import reconstruct

    settings = Reconstruct(str(run), "digits", tmp_path / "pictures", num_images=3)
    reconstruct(settings)
    assert set(os.listdir(tmp_path / "pictures")) == {f"{n:06d}.png" for n in range(3)} | {"reconstructions.json"}
    assert (tmp_path / "pictures.png").is_file()
    with pytest.raises(UsageError, match="pictures exists"):
        reconstruct(settings)
