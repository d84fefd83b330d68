"""Likelihood: the numbers of a stock forward pass, one row at a time or many, and pictures of where they come from."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from stage1_vqvae.modalities.sheets import heat, save_png
from stage2_prior import prior
from stage2_prior.forward import pack
from stage2_prior.layout import SequenceLayout
from stage2_prior.likelihood import score_codes
from stage2_prior.prior import CausalPrior
from vq_prior import VQPriorPipeline
from vq_prior.cli import main
from vq_prior.core.errors import UsageError
from vq_prior.draw import score


def count_packings(monkeypatch):
    """Return a list that grows with each packing of a prior's weights from here on."""
    packings = []

    def counted(model):
        packings.append(model)
        return pack(model)

    monkeypatch.setattr(prior, "pack", counted)
    return packings


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return VQPriorPipeline.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def digits():
    """Forty real digits as pixels [40, 8, 8, 1], and their classes."""
    bunch = load_digits()
    pixels = np.floor(bunch.images * (255 / 16) + 0.5).astype(np.uint8)
    return pixels[:40, ..., None], bunch.target[:40].tolist()


def test_scores_are_those_of_the_stock_model(pipeline, digits):
    pixels, classes = digits
    scores = pipeline.score(pixels[:3], labels=classes[:3])
    layout = pipeline.prior.layout
    images = torch.from_numpy(pixels[:3]).movedim(-1, 1).float().div(127.5).sub(1)
    codes = layout.to_tokens(pipeline.codec.encode(images))  # a vocabulary may leave codes out
    prompt = torch.tensor(classes[:3])[:, None] + layout.num_codes
    with torch.no_grad():
        logits = pipeline.prior.model(torch.cat([prompt, codes], dim=1)).logits[:, :-1, : layout.num_codes]
    nats = -logits.log_softmax(dim=-1).gather(2, codes[..., None])[..., 0]
    # Our decoder sums in another order than the stock model, in float32.
    torch.testing.assert_close(scores.maps[0].flatten(1), nats, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores.nats_per_token, nats.double().mean(dim=1), atol=1e-5, rtol=1e-4)
    bits = scores.nats_per_token * codes.shape[1] / math.log(2) / 64
    torch.testing.assert_close(scores.bits_per_dimension, bits)


def test_a_row_does_not_depend_on_the_others(pipeline, digits):
    pixels, classes = digits
    whole = pipeline.score(pixels, labels=classes)
    for row in (0, 17, 39):
        alone = pipeline.score(pixels[row], labels=classes[row])
        assert torch.equal(alone.maps[0][0], whole.maps[0][row])
    assert not torch.equal(pipeline.score(pixels).maps[0], whole.maps[0])  # without a class: the null prompt


def test_the_weights_are_packed_once_and_no_bit_depends_on_it(pipeline, digits, monkeypatch):
    codes = pipeline.codec.encode(torch.from_numpy(digits[0]).movedim(-1, 1).float().div(127.5).sub(1))[0]
    twice, labels = torch.cat([codes, codes.flip(0)]), torch.tensor(digits[1] * 2)
    packings = count_packings(monkeypatch)
    once = score_codes(pipeline.prior, (twice,), labels)
    assert len(packings) == 1
    monkeypatch.setattr(CausalPrior, "packed", lambda self: self)
    anew = score_codes(pipeline.prior, (twice,), labels)
    assert len(packings) == 3  # 80 rows are two calls
    assert torch.equal(anew.maps[0], once.maps[0])
    assert torch.equal(anew.nats_per_token, once.nats_per_token)


def test_what_was_not_learnt_is_less_likely(pipeline, digits):
    pixels, classes = digits
    codes = pipeline.codec.encode(torch.from_numpy(pixels).movedim(-1, 1).float().div(127.5).sub(1))[0]
    labels = torch.tensor(classes)
    order = torch.randperm(codes[0].numel(), generator=torch.Generator().manual_seed(0))
    shuffled = codes.flatten(1)[:, order].view_as(codes)
    mean, worse = (score_codes(pipeline.prior, (grid,), labels).nats_per_token.mean() for grid in (codes, shuffled))
    assert worse > mean + 0.05
    noise = np.random.default_rng(0).integers(0, 256, pixels.shape).astype(np.uint8)
    assert pipeline.score(noise).nats_per_token.mean() > pipeline.score(pixels).nats_per_token.mean() + 0.2


def test_a_code_without_a_token_is_infinitely_unlikely(pipeline, digits):
    (codes,) = pipeline.codec.encode(torch.from_numpy(digits[0][:2]).movedim(-1, 1).float().div(127.5).sub(1))
    left_out = int(codes[0].flatten()[5])
    own = pipeline.prior.layout
    model = pipeline.prior
    kept = tuple(code for code in range(own.num_codes) if code != left_out)
    # One code fewer and one class: the stock model has as many ids as before.
    compact = CausalPrior(model.model, SequenceLayout(own.levels, own.num_classes + 1, (kept,)), model.spec, "")
    scores = score_codes(compact, (codes[:1],), torch.tensor([0]))
    first = int((codes[0].flatten() == left_out).int().argmax())
    flat = scores.maps[0].flatten()
    assert flat[:first].isfinite().all()
    assert flat[first:].isinf().all()
    assert scores.nats_per_token.isinf().all()


def test_maps_are_blue_at_nothing_white_at_chance_and_red_beyond():
    nats = torch.tensor([[[0.0, 2.0], [4.0, math.inf]]])
    pixels = heat(nats, (6, 4), 2.0)
    assert pixels.shape == (1, 6, 4, 3)
    assert pixels[0, :3, :2].reshape(-1, 3).tolist() == [[33, 102, 172]] * 6
    assert pixels[0, 0, 3].tolist() == [247, 247, 247]
    assert (pixels[0, 3:] == [178, 24, 43]).all()


def test_labels_that_do_not_fit_are_refused(pipeline, digits):
    with pytest.raises(UsageError, match="one for each of the 3 images, got 2"):
        pipeline.score(digits[0][:3], labels=[1, 2])
    with pytest.raises(UsageError, match="unknown label 'cat'"):
        pipeline.score(digits[0][:3], labels="cat")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tmp_path, digits):
    """Twelve digits in a sub-folder a class, named as the model names them."""
    names = ["zero", "one", "two"]
    for number in range(30):
        if digits[1][number] < 3:
            path = tmp_path / "data" / names[digits[1][number]] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(digits[0][number, ..., 0]).save(path)
    return tmp_path / "data"


def test_the_command_writes_a_row_and_a_picture_for_each_image(
    pipeline, folder, tiny_model, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["score", "--model", str(tiny_model), "--data", "data", "--out", "out"]
    assert main(words) == 0
    told = json.loads((tmp_path / "out" / "scores.json").read_text())
    files = sorted(path for path in folder.rglob("*.png"))
    assert sorted(row["name"] for row in told["images"]) == sorted(str(path.relative_to(tmp_path)) for path in files)
    for number, row in enumerate(told["images"]):
        alone = pipeline.score(row["name"], labels=row["label"])
        assert row["nats_per_token"] == float(alone.nats_per_token[0])
        assert row["bits_per_dimension"] == float(alone.bits_per_dimension[0])
        picture = np.asarray(Image.open(tmp_path / "out" / row["file"]))
        white = told["map_nats"][0]["white"]
        assert white == math.log(pipeline.prior.layout.num_codes)
        assert (picture[:, 8:] == heat(alone.maps[0], (8, 8), white)[0]).all()
        assert (picture[:, :8, 0] == np.asarray(Image.open(row["name"]))).all()
        assert row["file"] == f"{number:06d}.png"
    assert (tmp_path / "out.png").is_file()
    before = contents(tmp_path / "out")
    capsys.readouterr()
    assert main(words) == 0
    assert "already holds these scores" in capsys.readouterr().out
    assert main([*words, "--unconditional"]) == 2
    assert "unconditional False -> True" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before
    (tmp_path / "out" / "000003.png").unlink()
    assert main(words) == 0
    assert contents(tmp_path / "out") == before


def interrupt(words, monkeypatch):
    """Run a command of twelve images and stop it at the eighth picture."""

    def stop_at_the_eighth(path, picture, **how):
        if path.name == "000007.png":
            raise KeyboardInterrupt
        save_png(path, picture, **how)

    with monkeypatch.context() as patch:
        patch.setattr(score, "save_png", stop_at_the_eighth)
        assert main(words) == 75


def test_a_rerun_continues_and_the_batch_and_the_interruption_leave_no_trace(folder, tiny_model, tmp_path, monkeypatch):
    words = ["score", "--model", str(tiny_model), "--data", str(folder), "--out"]
    out, begun = tmp_path / "out", tmp_path / ".out.partial"
    assert main([*words, str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(score, "ROWS_AT_ONCE", 3)
    interrupt([*words, str(out)], monkeypatch)
    assert not out.exists()
    kept = {path.name: path.stat().st_ino for path in begun.glob("0*.png")}
    assert len(kept) == 7
    packings = count_packings(monkeypatch)
    assert main([*words, str(out)]) == 0
    assert len(packings) == 1
    assert contents(out) == contents(tmp_path / "whole")
    assert {name: (out / name).stat().st_ino for name in kept} == kept
    assert not begun.exists()


def test_what_another_request_began_is_not_continued(folder, tiny_model, tmp_path, monkeypatch):
    words = ["score", "--model", str(tiny_model), "--data", str(folder), "--out"]
    assert main([*words, str(tmp_path / "whole"), "--unconditional"]) == 0
    interrupt([*words, str(tmp_path / "out")], monkeypatch)
    assert main([*words, str(tmp_path / "out"), "--unconditional"]) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_failing_command_leaves_nothing(folder, tiny_model, tmp_path, capsys):
    (folder / "two").rename(folder / "cats")
    for data, code, named in ((folder, 2, "unknown label 'cats'"), (tmp_path / "nowhere", 3, "nowhere")):
        words = ["score", "--model", str(tiny_model), "--data", str(data), "--out", str(tmp_path / "out")]
        assert main(words) == code
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert named in line
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
