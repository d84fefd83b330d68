"""Codecs with fewer and more codes, made from the tiny run's without training."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stage1_vqvae import resize
from stage1_vqvae.architecture import VQVAEConfig
from stage1_vqvae.data.loading import load_rows
from stage1_vqvae.data.sources import open_data
from stage1_vqvae.evaluate import evaluate_codec
from stage1_vqvae.modalities.pictures import PICTURES
from stage1_vqvae.modalities.pictures.values import Transform
from stage1_vqvae.model import VQVAE, load_codec
from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.quantizers import QUANTIZERS, Quantizer
from stage1_vqvae.resize import clustered, rates, resize_codebook, resized
from stage1_vqvae.resize_settings import ResizeCodebook
from stage1_vqvae.settings import ModelSettings, TrainVQVAE
from stage1_vqvae.train import train_vqvae
from vq_prior.cli import main
from vq_prior.core.disk.artifacts import new_folder
from vq_prior.core.errors import UsageError, VQPriorError
from vq_prior.core.spec import CodeSpec, LevelSpec
from vq_prior.judge.verify import verify


@pytest.fixture
def asked(tiny_run: Path, tmp_path: Path) -> ResizeCodebook:
    """Eight codes instead of 128."""
    return ResizeCodebook(str(tiny_run), (8,), "digits", tmp_path / "run", num_workers=1)


def distances(vectors: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Squared distance of each vector to its nearest code."""
    return ((vectors[:, None].astype(np.float64) - codebook[None]) ** 2).sum(2).min(1)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_clustering_agrees_with_lloyd_in_numpy() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 3)).astype(np.float32)
    old = rng.normal(size=(12, 3)).astype(np.float32)
    nearest = ((vectors[:, None] - old[None]) ** 2).sum(2).argmin(1)
    use = np.bincount(nearest, minlength=12)
    centres = old[np.argsort(-use, kind="stable")[:5]].astype(np.float64)
    for _ in range(resize.ITERATIONS):
        own = ((vectors[:, None] - centres[None]) ** 2).sum(2).argmin(1)
        centres = np.stack([vectors[own == k].mean(0) for k in range(5)])
    found = clustered(torch.from_numpy(old), torch.from_numpy(vectors), 5, np.random.default_rng(1))
    assert found.numpy() == pytest.approx(centres, abs=1e-4)


def test_distortion_falls_with_the_number_of_codes_and_below_that_of_the_old_codebook() -> None:
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(size=(400, 2)), rng.normal(10, 3, size=(100, 2))]).astype(np.float32)
    old = torch.tensor([[0.0, 0.0], [9.0, 9.0], [-500.0, 0.0]])  # the last is in no use
    errors = {
        size: distances(
            vectors, clustered(old, torch.from_numpy(vectors), size, np.random.default_rng(0)).numpy()
        ).mean()
        for size in (2, 4, 8, 32, 500)
    }
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert errors[4] < distances(vectors, old.numpy()).mean()
    assert errors[500] < 1e-3 * errors[2]


def test_codes_begin_where_the_distortion_is() -> None:
    tight, wide = torch.zeros(500, 2), torch.tensor([[100.0, 0.0]]) + 10 * torch.randn(20, 2)
    codebook = clustered(
        torch.tensor([[0.0, 0.0], [100.0, 0.0]]), torch.cat([tight, wide]), 8, np.random.default_rng(0)
    )
    assert int((codebook[:, 0] > 50).sum()) == 7


def test_clustering_is_a_function_of_its_generator() -> None:
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 2))).float()
    first, second, third = (clustered(vectors[:4], vectors, 9, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_vectors_that_are_all_the_same_are_no_obstacle() -> None:
    codebook = clustered(torch.ones(2, 3), torch.ones(20, 3), 6, np.random.default_rng(0))
    assert torch.equal(codebook, torch.ones(6, 3))


def test_smaller_codebook_is_a_whole_codec_with_the_same_networks(
    asked: ResizeCodebook, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = resize_codebook(asked)
    folder = asked.out / "vqvae"
    old, new = load_codec(tiny_run), load_codec(folder)
    assert new.spec.levels[0].num_codes == 8
    assert new.codec_id != old.codec_id
    before, after = old.state_dict(), new.state_dict()
    networks = [name for name in before if not name.startswith("quantizer.")]
    assert networks
    assert all(torch.equal(before[name], after[name]) for name in networks)
    pixels = load_rows(open_data("digits").validation, PICTURES, Transform(8, 8, 1))
    assert table[-1]["measured"] == evaluate_codec(new, pixels)
    assert table[0]["measured"] == evaluate_codec(old, pixels)
    assert verify(asked.out)
    record = json.loads((folder / "training.json").read_text())
    first, second = record["command"].splitlines()
    assert first == json.loads((tiny_run / "vqvae" / "training.json").read_text())["command"]
    assert second == "vq-prior resize-codebook --codec CODEC --codebook-size 8 --data digits --out RUN"
    assert record["measured"] == table[-1]["measured"]
    printed = capsys.readouterr().out
    assert "codes must be extracted anew and a prior trained anew" in printed
    assert f"next: vq-prior extract-codes --codec {folder} --data digits --out {asked.out / 'codes'}" in printed


def test_several_sizes_give_a_table_and_no_files(asked: ResizeCodebook, capsys: pytest.CaptureFixture[str]) -> None:
    table = resize_codebook(replace(asked, codebook_size=(4, 256)))
    assert [row["codes"] for row in table] == [128, 4, 256]
    given, few, many = (row["measured"] for row in table)
    assert few["psnr"] < given["psnr"] < many["psnr"]
    printed = capsys.readouterr().out
    assert "nothing was written" in printed
    assert not asked.out.exists()
    line = next(line for line in printed.splitlines() if line.strip().startswith("256 "))
    assert line.split()[:2] == ["256", "128.0"]  # 4x4 codes of 8 bits
    assert line.split()[3] == "2.000"  # over 8x8 pixels


def test_rates_are_those_of_a_fixed_and_of_an_ideal_code() -> None:
    spec = CodeSpec(1, (6, 4), (LevelSpec((3, 2), 16),))
    counts = np.array([6, 2, 1, 1])
    share = counts / counts.sum()
    perplexity = math.exp(-(share * np.log(share)).sum())
    found = rates({"levels": [{"perplexity": perplexity}]}, spec)
    assert found["bits"] == 6 * 4
    assert found["bits_per_pixel"] == 1.0
    assert found["entropy_coded_bits"] == pytest.approx(-6 * (share * np.log2(share)).sum())


def test_fine_tuning_lowers_the_error_leaves_the_encoder_and_gives_the_same_bytes_again(
    asked: ResizeCodebook, tiny_run: Path
) -> None:
    tuned = replace(asked, steps=20, batch_size=32)
    _, before, after = resize_codebook(tuned)
    assert after["measured"]["mse"] < before["measured"]["mse"]
    old, new = load_codec(tiny_run).state_dict(), load_codec(asked.out).state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old if name.startswith("encoder."))
    assert not all(torch.equal(old[name], new[name]) for name in old if name.startswith("decoder."))
    again = replace(tuned, out=asked.out.with_name("again"))
    resize_codebook(again)  # the same request: the same bytes
    assert files_of(again.out / "vqvae") == files_of(asked.out / "vqvae")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ema", {"distance": "cosine", "start": None}),
        ("nearest", {"distance": "cosine"}),
        ("simvq", {}),
        ("gumbel", {}),
    ],
)
def test_codes_of_every_codebook_lie_where_the_quantiser_measures(
    tiny_run: Path, name: str, options: dict[str, object]
) -> None:
    settings = QuantizerSettings(name=name, num_codes=8, code_dim=4, **options)
    torch.manual_seed(0)
    codec = VQVAE(VQVAEConfig(replace(load_codec(tiny_run).architecture, quantizer=settings))).eval()
    vectors = torch.randn(300, 4)
    errors = []
    for size in (4, 64):
        quantizer = resized(codec, size, lambda *_: vectors, np.random.default_rng(0)).quantizer
        assert quantizer.table().shape == (size, 4)
        errors.append(float((quantizer(vectors).vectors - quantizer.place(vectors)).square().sum(1).mean().detach()))
    assert errors[1] < 0.5 * errors[0]


def of_levels(out: Path, **changes: object) -> Path:
    """Train a codec of several levels for a few steps."""
    settings = TrainVQVAE("digits", out, steps=12, batch_size=16, log_every=6, num_workers=1, precision="fp32")
    settings = replace(settings, warmup_steps=2, levels=int(str(changes.pop("levels", 1))))
    small = ModelSettings(width=16, num_residual_blocks=1, downsampling=4)
    quantizer = QuantizerSettings(**({"num_codes": 16} | changes), code_dim=4)  # type: ignore[arg-type]
    return train_vqvae(replace(settings, model=small, quantizer=quantizer)).parent


@pytest.mark.parametrize(("levels", "depth"), [(1, 2), (2, 1), (2, 2)])
def test_one_level_of_several_is_resized(tmp_path: Path, levels: int, depth: int) -> None:
    """Levels before it keep their codes, those behind it their sizes; the last one keeps all but itself."""
    run, count = of_levels(tmp_path / "run", levels=levels, depth=depth), levels * depth
    codec, images = load_codec(run), load_digits(40)
    for level in range(count):
        out = tmp_path / f"resized-{level}"
        asked = ResizeCodebook(str(run), (6,), "digits", out, level=level, num_workers=1)
        before, after = resize_codebook(asked)
        made = load_codec(out)
        assert verify(out / "vqvae")
        assert [each.num_codes for each in made.spec.levels] == [6 if n == level else 16 for n in range(count)]
        assert (before["codes"], after["codes"]) == (16, 6)
        old, new = codec.encode(images), made.encode(images)
        assert all(torch.equal(a, b) for a, b in zip(old[:level], new[:level], strict=True))
        assert int(new[level].max()) < 6
        assert len(after["measured"]["levels"]) == count
    error = [resize_codebook(replace(asked, out=None, codebook_size=(n,)))[1]["measured"]["mse"] for n in (2, 64)]
    assert error[1] < error[0]


def test_what_stays_behind_a_level_is_clustered_for_what_it_leaves(tmp_path: Path) -> None:
    """The second level of fewer first codes is nearer to what these leave than it was."""
    run = of_levels(tmp_path / "run", depth=2)
    asked = ResizeCodebook(str(run), (3,), "digits", tmp_path / "three", level=0, num_workers=1)
    resize_codebook(asked)
    old, new = load_codec(run), load_codec(tmp_path / "three")
    latents = new.latents_of(0, load_digits(200))
    first, second = new.quantizer.levels
    left = (latents - first.embed(first.encode(latents))).reshape(-1, 4)
    errors = [
        float((left - level.embed(level.encode(left))).square().mean()) for level in (old.quantizer.levels[1], second)
    ]
    assert errors[1] < errors[0]


def load_digits(count: int) -> torch.Tensor:
    return load_rows(open_data("digits").train, PICTURES, Transform(8, 8, 1)).batch(np.arange(count))


def test_levels_of_their_own_sizes_are_trained_and_resized_to_one_size(tmp_path: Path) -> None:
    run = of_levels(tmp_path / "run", num_codes=None, depth=2, level_codes=(12, 6))
    assert [level.num_codes for level in load_codec(run).spec.levels] == [12, 6]
    resize_codebook(ResizeCodebook(str(run), (12,), "digits", tmp_path / "same", level=1, num_workers=1))
    quantizer = load_codec(tmp_path / "same").architecture.quantizer
    assert (quantizer.num_codes, quantizer.level_codes) == (12, None)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"level_codes": (8, 8, 8)}, r"level-codes must be 2 number\(s\), one a level, got 3"),
        ({"level_codes": (8,)}, r"level-codes must be 2 number\(s\), one a level, got 1"),
        ({"level_codes": (8, 4), "num_codes": 16}, "and then --quantizer.num-codes is left out, got 8 4"),
        ({"level_codes": (8, 1)}, "--quantizer.level-codes must be between 2 and"),
        ({"level_codes": (8, 8), "name": "fsq"}, "--quantizer.level-codes does not apply to fsq"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, sizes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        of_levels(tmp_path / "run", **({"num_codes": None, "depth": 2} | sizes))
    assert not (tmp_path / "run").exists()


def with_quantizer(codec: VQVAE, name: str) -> VQVAE:
    a = codec.architecture
    return VQVAE(VQVAEConfig(replace(a, quantizer=replace(a.quantizer, name=name))))


def saved(codec: VQVAE, folder: Path) -> str:
    codec.save_pretrained(folder)
    return str(folder)


def test_a_codebook_moved_by_gradients_is_resized_too(asked: ResizeCodebook, tiny_run: Path, tmp_path: Path) -> None:
    codec = saved(with_quantizer(load_codec(tiny_run), "nearest"), tmp_path / "codec")
    _, before, after = resize_codebook(replace(asked, codec=codec, steps=10))
    assert after["measured"]["mse"] < before["measured"]["mse"]
    assert load_codec(asked.out).architecture.quantizer.num_codes == 8


WRONG: dict[str, tuple[dict[str, object], str]] = {
    "too few": ({"codebook_size": (1,)}, "--codebook-size must be between 2 and 1048576, got 1"),
    "too many": ({"codebook_size": (2**20 + 1,)}, "between 2 and 1048576, got 1048577"),
    "twice": ({"codebook_size": (8, 8)}, "name each size once, got 8 twice"),
    "none": ({"codebook_size": ()}, "must be one number of codes or several, got none"),
    "present": ({"codebook_size": (8, 128)}, "must differ from the codec's own, which is 128"),
    "more than vectors": ({"codebook_size": (30_000,)}, "must be at most 27328, the latent vectors of the 1708 images"),
    "steps": ({"steps": 0}, "--steps must be between 1 and"),
    "level": ({"level": 1}, "--level must be below 1, the number of the codec's levels, got 1"),
    "learning rate": ({"learning_rate": math.nan}, "--learning-rate must be a number above 0, at most 10, got nan"),
    "no data": ({"data": "nowhere"}, "nowhere does not exist"),
    "no codec": ({"codec": "nowhere"}, "nowhere does not exist"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_refused_and_leaves_nothing(
    asked: ResizeCodebook, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(VQPriorError, match=message):
        resize_codebook(replace(asked, **changes))
    assert not asked.out.exists()


def test_what_is_at_out_is_replaced_only_if_asked(asked: ResizeCodebook, tiny_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the codec to be resized"):
        resize_codebook(replace(asked, out=tiny_run, overwrite=True))
    own = tmp_path / "own"
    shutil.copytree(tiny_run / "vqvae", own / "vqvae")
    with pytest.raises(UsageError, match=r"own/vqvae exists; choose another --out or pass --overwrite"):
        resize_codebook(replace(asked, out=own))
    resize_codebook(replace(asked, out=own, overwrite=True))
    assert load_codec(own).spec.levels[0].num_codes == 8
    (own / "vqvae-training").mkdir()
    with pytest.raises(UsageError, match="holds a run of train-vqvae"):
        resize_codebook(replace(asked, out=own, overwrite=True))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match="existing file"):
        resize_codebook(replace(asked, out=file))
    with new_folder(tmp_path / "strange" / "vqvae") as folder:
        (folder / "letters.txt").touch()
    with pytest.raises(UsageError, match="files that are no codec"):
        resize_codebook(replace(asked, out=tmp_path / "strange", overwrite=True))


def test_several_processes_are_refused(asked: ResizeCodebook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="runs in one process"):
        resize_codebook(asked)


def test_a_quantiser_without_free_codes_is_refused_by_name(
    asked: ResizeCodebook, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fixed(Quantizer):
        """A quantiser of the contract alone, without a codebook."""

        def identity_config(self) -> dict[str, object]:
            return {}

        def identity_tensors(self) -> dict[str, torch.Tensor]:
            return {}

    monkeypatch.setitem(QUANTIZERS._entries, "fixed", Fixed)
    codec = saved(with_quantizer(load_codec(tiny_run), "fixed"), tmp_path / "codec")
    with pytest.raises(UsageError, match=r"quantiser fixed .* only codebooks of ema, nearest, simvq, gumbel can"):
        resize_codebook(replace(asked, codec=codec))


def test_the_command_line_says_it_in_one_line(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["resize-codebook", "--codec", str(tiny_run), "--data", "digits", "--codebook-size"]
    assert main([*words, "4", "8"]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line.endswith("resized")]) == 2
    assert main([*words, "128", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*words, "many"]) == 2
    assert "--codebook-size" in capsys.readouterr().err
    assert main([*words, "16", "--num-processes", "2"]) == 2
    assert "resize-codebook runs in one process" in capsys.readouterr().err
