"""Codecs of several levels: residual quantisation, several grids, and what is decoded without some levels."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stage1_vqvae.architecture import Architecture, VQVAEConfig
from stage1_vqvae.evaluate import reconstruct, reconstructed, require_levels
from stage1_vqvae.extract import extract_codes
from stage1_vqvae.level_dropout import drawn_levels, of_first_levels
from stage1_vqvae.losses import coarse_terms, even_rows
from stage1_vqvae.model import VQVAE, load_codec
from stage1_vqvae.quantizer_settings import QuantizerSettings, check_quantizer_settings, fixed_code_dim
from stage1_vqvae.quantizers import QUANTIZERS, Quantizer
from stage1_vqvae.quantizers.residual import ResidualQuantizer
from stage1_vqvae.settings import ExtractCodes, LossSettings, ModelSettings, Reconstruct, TrainVQVAE, check, resolve
from stage1_vqvae.train import new_codec, train_vqvae
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.modality import Facts
from vq_prior.core.spec import LevelSpec
from vq_prior.testing import check_quantizer

DEEP = ["ema", "nearest", "simvq", "fsq", "gumbel"]


def quantizer(name: str, depth: int, **options: object) -> Quantizer:
    torch.manual_seed(0)
    dim = fixed_code_dim(name, 8) or 3
    return QUANTIZERS[name].of(QuantizerSettings(name=name, num_codes=8, code_dim=dim, depth=depth, **options))


def latents(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("name", DEEP)
def test_a_deep_quantiser_keeps_the_contract(name: str, depth: int) -> None:
    check_quantizer(lambda: quantizer(name, depth))


@pytest.mark.parametrize("name", DEEP)
def test_every_level_comes_nearer(name: str) -> None:
    module = quantizer(name, 4).eval()
    z = latents(2000, module.code_dim) * 0.7
    module.start(z, np.random.default_rng(0))
    codes = module.encode(z)
    wanted = module(z).vectors if name != "fsq" else torch.tanh(z)
    errors = [
        float(
            (module.embed([*codes[:n], *[None] * (4 - n)]) - (z if name != "fsq" else wanted)).square().mean().detach()
        )
        for n in (1, 2, 3, 4)
    ]
    assert all(after < before for before, after in pairwise(errors)) or name == "fsq", errors
    assert len({tuple(level.tolist()) for level in codes}) == 4


def test_fsq_of_depth_two_cuts_each_step_into_as_many() -> None:
    module = quantizer("fsq", 2).eval()
    z = torch.linspace(-0.9, 0.9, 3001)[:, None].expand(-1, module.code_dim).contiguous()
    coarse, fine = (module.embed(kept) for kept in ([module.encode(z)[0], None], module.encode(z)))
    steps = [len(torch.unique(each[:, 0])) for each in (coarse, fine)]
    assert steps[0] == 6  # of 8, whose outermost two lie beyond tanh(0.9)
    assert 4 * 8 < steps[1] <= 6 * 8
    assert (fine[1:, 0] >= fine[:-1, 0]).all()


def test_vectors_are_the_sum_of_what_numpy_finds_nearest() -> None:
    module = quantizer("ema", 3).eval()
    z = latents(50, 3)
    left, told = z.numpy(), []
    for level in module.levels:
        table = level.codebook.numpy()
        told.append(((left[:, None] - table[None]) ** 2).sum(-1).argmin(1))
        left = left - table[told[-1]]
    result = module(z)
    assert all(np.array_equal(codes.numpy(), found) for codes, found in zip(result.codes, told, strict=True))
    np.testing.assert_allclose(result.vectors.numpy(), z.numpy() - left, atol=1e-5)  # float32 sums of three numbers


def test_gradient_passes_once_whatever_the_depth() -> None:
    z = latents(5, 3).requires_grad_()
    upstream = latents(5, 3, seed=1)
    (quantizer("ema", 4).train()(z).vectors * upstream).sum().backward()
    assert torch.equal(z.grad, upstream)


@pytest.mark.parametrize("name", ["ema", "nearest", "gumbel"])
def test_every_level_revives_its_dead_codes(name: str) -> None:
    module = quantizer(name, 2, decay=0.5).train()
    assert isinstance(module, ResidualQuantizer)
    with torch.no_grad():
        for level in module.levels:
            level.codebook[3:] = 1e4
            getattr(level, "ema_sums", level.codebook)[3:] = 1e4
    revived = 0.0
    for step in range(8):
        module(latents(60, 3, seed=step))
        revived += module.update(np.random.default_rng(step))["num_revived"]
    assert revived >= 10
    assert all(level.codebook.abs().max() < 100 for level in module.levels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (QuantizerSettings(name="lfq", depth=2), r"--quantizer\.depth does not apply to lfq, got 2; leave it out"),
        (QuantizerSettings(depth=2, level_dropout=1.0), r"--quantizer\.level-dropout must be .* below 1, got 1"),
        (QuantizerSettings(depth=0), r"--quantizer\.depth must be between 1 and 16, got 0"),
    ],
)
def test_a_depth_that_cannot_be_is_refused(settings: QuantizerSettings, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_quantizer_settings(settings)


def test_cosine_does_not_go_with_a_depth() -> None:
    with pytest.raises(UsageError, match=r"cosine does not go with --quantizer\.depth"):
        check_quantizer_settings(QuantizerSettings(depth=2, distance="cosine"))


def test_levels_of_a_row_are_drawn_by_the_row_alone() -> None:
    drawn = drawn_levels(slice(0, 4000), 3, 0.5, seed=1, step=7)
    assert drawn is not None
    shares = [float((drawn == n).double().mean()) for n in (1, 2, 3)]
    assert np.allclose(shares, [0.5 * 0.5**0.5, 0.5 * (1 - 0.5**0.5), 0.5], atol=0.03)
    later = drawn_levels(slice(20, 30), 3, 0.5, seed=1, step=7)
    assert later is not None
    assert torch.equal(later, drawn[20:30])
    assert not torch.equal(later, drawn_levels(slice(20, 30), 3, 0.5, seed=1, step=8))
    none = [
        drawn_levels(slice(0, 10), count, share, seed=1, step=7) for count, share in ((1, 0.5), (3, None), (3, 0.0))
    ]
    assert none == [None] * 3


def test_rows_are_made_of_their_first_levels_with_the_gradient_of_all() -> None:
    module = quantizer("ema", 3).eval()
    z = latents(3, 4, 3)
    codes = module.encode(z)
    vectors = module.embed(codes).clone().requires_grad_()
    found = of_first_levels(module, vectors, codes, torch.tensor([1, 2, 3]), 0)
    for row in range(3):
        alone = module.embed([*(level[row] for level in codes[: row + 1]), *[None] * (2 - row)])
        torch.testing.assert_close(found[row], alone)
    found.sum().backward()
    assert torch.equal(vectors.grad, torch.ones_like(vectors))
    dropped = of_first_levels(module, vectors, codes, torch.tensor([1, 2, 3]), 2)
    assert not dropped[:2].any()


def architecture(**changes: object) -> Architecture:
    settings = QuantizerSettings(num_codes=8, code_dim=3, depth=int(changes.pop("depth", 1)))
    usual: dict = {"channels": 1, "shape": (8, 8), "downsampling": 4, "width": 16, "residual_width": 8}
    return Architecture(**(usual | {"num_residual_blocks": 1, "quantizer": settings} | changes))


@pytest.mark.parametrize(
    ("shape", "factor", "between", "grids"),
    [
        ((32,), 8, 2, 3),
        ((8, 8), 4, 2, 2),
        ((9, 14), 8, 2, 3),
        ((32, 128), (4, 12), (2, 3), 2),
        ((8, 8, 8), 4, 2, 2),
        ((36, 36), 36, 6, 2),
    ],
)
@pytest.mark.parametrize("depth", [1, 2])
def test_grids_of_any_rank_and_factor(shape, factor, between, grids, depth) -> None:
    a = architecture(shape=shape, downsampling=factor, grids=grids, grid_factor=between, depth=depth)
    a.check("a")
    codec = VQVAE(VQVAEConfig(a)).eval()
    images = latents(3, 1, *shape).clamp(-1, 1)
    codes = codec.encode(images)
    assert [tuple(level.shape[1:]) for level in codes] == [level.grid for level in codec.spec.levels]
    assert len(codes) == grids * depth
    copies = codec.decode(codes)
    assert copies.shape == images.shape
    assert torch.equal(codec.decode(codes[:1]), codec.decode((codes[0], *[None] * (len(codes) - 1))))
    assert not torch.equal(codec.decode(codes[:1]), copies)
    assert torch.equal(codec.encode(images[1:2])[-1], codes[-1][1:2])
    assert torch.equal(codec.decode(tuple(level[1:2] for level in codes)), copies[1:2])
    vectors = codec.vectors(codes)
    assert [tuple(each.shape) for each in vectors] == [(3, *grid, 3) for grid in a.grid_shapes()]


def test_finer_codes_depend_on_the_coarser_ones() -> None:
    codec = VQVAE(VQVAEConfig(architecture(grids=2))).eval()
    images = latents(8, 1, 8, 8).clamp(-1, 1)
    before = codec.latents_of(1, images)
    with torch.no_grad():
        codec.quantizers[0].codebook += 1.0
    assert not torch.equal(codec.latents_of(1, images), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grids": 3}, "downsampling 4 must be 2 to the power 2 times 2 or more for 3 grids"),
        ({"grids": 2, "network": "sonnet"}, "network sonnet has one code grid, not 2"),
        ({"grids": 2, "grid_factor": (2, 2, 2)}, r"grid_factor must be .*, got \(2, 2, 2\)"),
        ({"grids": 9}, "grids must be between 1 and 8, got 9"),
    ],
)
def test_grids_that_cannot_be_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        architecture(**changes).check("a")


def tiny(out: Path, **quantizer: object) -> TrainVQVAE:
    return TrainVQVAE(
        "digits",
        out,
        steps=6,
        batch_size=16,
        log_every=3,
        warmup_steps=2,
        num_workers=1,
        precision="fp32",
        model=ModelSettings(width=16, num_residual_blocks=1, downsampling=4),
        quantizer=QuantizerSettings(num_codes=16, code_dim=4, **quantizer),
    )


@pytest.mark.parametrize(("grids", "depth"), [(1, 3), (2, 1), (2, 2)])
def test_every_level_is_trained_logged_judged_and_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], grids: int, depth: int
) -> None:
    run = train_vqvae(replace(tiny(tmp_path / "run", depth=depth), levels=grids)).parent
    codec, levels = load_codec(run), grids * depth
    assert [level.num_codes for level in codec.spec.levels] == [16] * levels
    assert [level.grid for level in codec.spec.levels] == [(2, 2)] * depth + [(4, 4)] * depth * (grids - 1)
    for line in map(json.loads, (run / "vqvae-training" / "metrics.jsonl").read_text().splitlines()):
        for name in ("usage", "perplexity", "num_dead", "error_without"):
            assert {f"{name}.{n}" for n in range(levels)} <= line.keys()
    measured = json.loads((run / "vqvae" / "training.json").read_text())["measured"]
    assert all({"to_here", "without", "usage"} <= level.keys() for level in measured["levels"])
    assert measured["levels"][-1]["to_here"]["psnr"] == pytest.approx(measured["psnr"], abs=1e-3)  # of the same rows
    store = CodeStore.open(extract_codes(ExtractCodes(str(run), "digits", tmp_path / "codes")))
    assert store.spec == codec.spec
    capsys.readouterr()
    reconstruct(Reconstruct(str(run), "digits", tmp_path / "first", num_images=3, first_levels=1))
    said = capsys.readouterr().out
    assert f"wrote 3 pairs (original left, reconstruction right) from the first 1 of {levels} level(s)" in said
    shown = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "first").glob("*.png"))]
    errors = [((each[:, :8].astype(float) - each[:, -8:]) / 127.5) ** 2 for each in shown]
    told = float(re.findall(r"mse ([0-9.]+)", said)[0])
    assert told == pytest.approx(np.mean(errors), rel=0.02)  # files hold whole numbers
    assert json.loads((tmp_path / "first" / "reconstructions.json").read_text())["first_levels"] == 1


def test_first_levels_are_some_of_the_codec() -> None:
    codec = VQVAE(VQVAEConfig(architecture(depth=2))).eval()
    images = latents(2, 1, 8, 8).clamp(-1, 1)
    assert torch.equal(reconstructed(codec, images, 1), codec.decode(codec.encode(images)[:1]))
    with pytest.raises(UsageError, match="--first-levels must be between 1 and 2, the codec's levels, got 3"):
        require_levels(codec, 3)


@pytest.mark.parametrize("shape", [(16,), (8, 8), (8, 8, 8)])
def test_what_coarse_grids_make_alone_is_trained_as_it_is_decoded(shape: tuple[int, ...]) -> None:
    codec = VQVAE(VQVAEConfig(replace(architecture(), shape=shape, grids=3, downsampling=8))).eval()
    vectors = [latents(2, 3, *grid) for grid in codec.architecture.grid_shapes()]
    made = codec.decoder.of_first(vectors, slice(1, None, 2))
    for number, values in enumerate(made, start=1):
        alone = [each if n < number else torch.zeros_like(each) for n, each in enumerate(vectors)]
        whole = codec.decoder(alone)
        torch.testing.assert_close(values, whole if number == 3 else whole[1::2])


def test_the_coarse_term_of_pieces_adds_up_to_that_of_the_batch() -> None:
    images, made = latents(8, 1, 4, 4), latents(8, 1, 4, 4, seed=1)
    wanted = (made[::2] - images[::2]).square().mean()
    for cuts in ([0, 8], [0, 3, 8], [0, 1, 2, 8], [0, 2, 3, 4, 7, 8]):
        total = torch.zeros(())
        for first, last in pairwise(cuts):
            rows, piece = even_rows(first, last - first), slice(first, last)
            coarse = (made[piece][rows],)
            term = coarse_terms(images[piece], coarse, rows, kind="mse", first=first)["coarse"]
            total = total + term * (last - first) / 8
        torch.testing.assert_close(total, wanted)


def test_a_training_tells_what_the_coarse_grids_make_alone(tmp_path: Path) -> None:
    decibels = []
    for weight in (0.0, 1.0):
        settings = replace(tiny(tmp_path / f"{weight}"), steps=120, log_every=40, levels=2)
        train_vqvae(replace(settings, loss=LossSettings(coarse_weight=weight)))
        lines = (settings.out / "vqvae-training" / "metrics.jsonl").read_text().splitlines()
        assert all(("coarse" in json.loads(line)) is (weight > 0) for line in lines)
        levels = json.loads((settings.out / "vqvae" / "training.json").read_text())["measured"]["levels"]
        decibels.append(levels[0]["to_here"]["psnr"])
    assert decibels[1] > decibels[0] + 1  # dB, of the first grid alone


def test_a_codec_of_one_level_asks_for_it() -> None:
    codec = VQVAE(VQVAEConfig(architecture())).eval()
    with pytest.raises(UsageError, match=r"codes must be a tuple of 1 level\(s\), got 0"):
        codec.decode(())
    with pytest.raises(UsageError, match="codes must be a tuple with a tensor of integers"):
        codec.decode((None,))


def test_levels_of_other_numbers_of_images_are_refused() -> None:
    codec = VQVAE(VQVAEConfig(architecture(depth=2))).eval()
    first, second = codec.encode(latents(3, 1, 8, 8).clamp(-1, 1))
    with pytest.raises(UsageError, match="codes must be of as many images in every level, got 3, 2"):
        codec.decode((first, second[:2]))
    with pytest.raises(UsageError, match=r"codes must be a tuple of 1 to 2 level\(s\), got 0"):
        codec.decode((None, None))


def test_a_deeper_codec_keeps_the_codes_of_the_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_vqvae(tiny(tmp_path / "one"))
    base = load_codec(tmp_path / "one")
    settings = replace(tiny(tmp_path / "two", depth=3), from_codec=str(tmp_path / "one"))
    train_vqvae(settings)
    assert "its encoder and the codes of its 1 level(s) stay" in capsys.readouterr().out
    deeper = load_codec(tmp_path / "two")
    images = latents(20, 1, 8, 8).clamp(-1, 1)
    assert torch.equal(base.encode(images)[0], deeper.encode(images)[0])
    assert len(deeper.spec.levels) == 3
    assert not torch.equal(base.decoder.stem.weight, deeper.decoder.stem.weight)
    assert not torch.equal(deeper.quantizer.levels[1].codebook, deeper.quantizer.levels[2].codebook)
    with pytest.raises(UsageError, match=r"--quantizer\.depth must be at least 3, that of the codec of --from, got 2"):
        train_vqvae(replace(tiny(tmp_path / "less", depth=2), from_codec=str(tmp_path / "two")))


def test_other_levels_than_the_run_has_are_refused_with_what_is_kept(tmp_path: Path) -> None:
    settings = replace(tiny(tmp_path / "run"), steps=2, levels=2)
    train_vqvae(settings)
    said = r"for 3 grids, got .*; what was not typed is that of the run in .*vqvae-training, --overwrite starts anew"
    with pytest.raises(UsageError, match=said):
        train_vqvae(replace(TrainVQVAE(settings.data, settings.out), levels=3))


def test_level_dropout_without_levels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--quantizer\.level-dropout needs several levels"):
        train_vqvae(tiny(tmp_path / "run", level_dropout=0.5))


@pytest.mark.parametrize(
    ("levels", "given", "between", "wanted"),
    [(1, None, 2, 4), (2, None, 2, 4), (3, None, 2, 8), (4, None, 2, 16), (2, None, 3, 6), (2, 8, (4, 2), 8)],
)
def test_the_coarsest_grid_leaves_room_for_the_finer_ones(levels, given, between, wanted) -> None:
    settings = TrainVQVAE("d", Path("r"), levels=levels, model=ModelSettings(downsampling=given, grid_factor=between))
    resolved = resolve(settings, Facts(100, (32, 32), 32, 3), "cpu")
    assert resolved.model.downsampling == wanted
    assert resolved.quantizer.num_codes >= (256 if levels > 1 else 128)  # by the cells of the finest grid
    new_codec(resolved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"levels": 2, "model": ModelSettings(downsampling=2)},
            "--model.downsampling must be 2 to the power 1, .*got 2",
        ),
        ({"levels": 2, "model": ModelSettings(grid_factor=17)}, "--model.grid-factor must be .*, got 17"),
        ({"levels": 2, "model": ModelSettings(network="sonnet")}, "sonnet has one code grid, got --levels 2"),
        ({"levels": 6}, "--levels 6 are too many for 32x32: one code of the coarsest grid would be 64x64 of them"),
        ({"model": ModelSettings(grid_factor=4)}, "--model.grid-factor needs --levels above 1, got 4; leave it out"),
        (
            {"levels": 8, "quantizer": QuantizerSettings(depth=16)},
            "--levels times --quantizer.depth must be at most 64",
        ),
        ({"levels": 9}, "--levels must be between 1 and 8, got 9"),
    ],
)
def test_settings_of_grids_that_cannot_be_are_refused(settings: dict, message: str) -> None:
    asked = TrainVQVAE("digits", Path("r"), **settings)

    def chosen() -> None:
        check(asked)
        resolve(asked, Facts(100, (32, 32), 32, 3), "cpu")

    with pytest.raises(UsageError, match=message):
        chosen()


def test_spec_of_levels() -> None:
    a = architecture(grids=2, depth=2)
    assert a.spec().levels == (LevelSpec((2, 2), 8),) * 2 + (LevelSpec((4, 4), 8),) * 2
