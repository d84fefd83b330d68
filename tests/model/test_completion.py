"""Completions: the kept codes stay bit for bit, the rest is the sample of its index, whatever is drawn beside it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from vq_prior import VQPriorPipeline
from vq_prior.cli import main
from vq_prior.core.errors import ArtifactError, UsageError


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return VQPriorPipeline.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def pictures():
    """Real digits as pictures."""
    return [Image.fromarray(np.floor(image * (255 / 16) + 0.5).astype(np.uint8)) for image in load_digits().images[:4]]


def codes_of(pipeline, picture):
    images = torch.from_numpy(np.asarray(picture).copy()).float().div(127.5).sub(1)[None, None]
    return pipeline.codec.encode(images)[0][0]


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_the_kept_rows_are_the_images_and_the_batch_leaves_no_trace(pipeline, pictures, guidance_scale):
    settings = {"labels": "zero", "seed": 3, "guidance_scale": guidance_scale, "num_images": 5, "temperature": 1.5}
    whole = pipeline.complete(pictures[0], "top half", **settings)
    (codes,) = whole.codes
    rows = codes.shape[1] // 2
    assert (codes[:, :rows] == codes_of(pipeline, pictures[0])[:rows]).all()
    assert len(codes.flatten(1).unique(dim=0)) > 1
    singly = pipeline.complete(pictures[0], 0.5, batch_size=1, **settings)
    assert torch.equal(singly.codes[0], codes)
    last = pipeline.complete(pictures[0], 0.5, **{**settings, "num_images": 1, "first_index": 4}).codes[0]
    assert torch.equal(last[0], codes[4])


def test_nothing_kept_is_a_plain_draw_and_everything_kept_is_the_image(pipeline, pictures):
    nothing = pipeline.complete(pictures[1], 0, num_images=3, seed=1, output_type="pt")
    assert torch.equal(nothing.images, pipeline(3, seed=1, output_type="pt").images)
    everything = pipeline.complete(pictures[1], 1.0, num_images=2, seed=1)
    assert (everything.codes[0] == codes_of(pipeline, pictures[1])).all()


def test_a_completion_goes_on_from_what_is_kept(pipeline, pictures):
    """Forced tokens that a plain draw had taken itself change nothing; others do."""
    (drawn,) = pipeline(4, labels="one", seed=8, temperature=1.5).codes
    tokens = pipeline.prior.layout.to_tokens((drawn,))
    given = tokens.clone()
    given[:, 7:] = -1
    again = pipeline(4, labels="one", seed=8, temperature=1.5, given=given).codes[0]
    assert torch.equal(again, drawn)
    with pytest.warns(DeprecationWarning, match="prefix is deprecated"):
        older = pipeline(4, labels="one", seed=8, temperature=1.5, prefix=tokens[:, :7]).codes[0]
    assert torch.equal(older, drawn)
    with (
        pytest.raises(UsageError, match="prefix cannot go with given"),
        pytest.warns(DeprecationWarning, match="prefix"),
    ):
        pipeline(4, prefix=tokens[:, :7], given=given)
    other = pipeline.complete(pictures[2], 0.5, labels="one", seed=8, temperature=1.5, num_images=4).codes[0]
    assert not torch.equal(other[:, 2:], drawn[:, 2:])


def test_every_form_of_an_image_gives_the_same_completion(pipeline, pictures, tmp_path):
    pictures[0].save(tmp_path / "zero.png")
    pixels = np.asarray(pictures[0])
    forms = [pictures[0], tmp_path / "zero.png", str(tmp_path / "zero.png"), pixels[..., None].repeat(3, axis=-1)]
    forms += [torch.from_numpy(pixels.copy()).float().div(127.5).sub(1)[None]]
    first, *others = [pipeline.complete(form, labels=0, output_type="np").images for form in forms]
    assert all(np.array_equal(first, other) for other in others)
    both = pipeline.complete(pictures[:2], num_images=2, labels=0).codes[0]
    assert torch.equal(both[2:, :2], codes_of(pipeline, pictures[1])[:2].expand(2, -1, -1))


@pytest.mark.parametrize(
    ("image", "settings", "error", "named"),
    [
        ("digit", {"keep": 1.5}, UsageError, "keep must be .* got 1.5"),
        ("digit", {"keep": float("nan")}, UsageError, "got nan"),
        ("digit", {"keep": "left half"}, UsageError, "got left half"),
        ("digit", {"keep": 0.1}, UsageError, "no whole row of this model's 4 rows of codes; give 0 or at least 0.25"),
        ("digit", {"num_images": 0}, UsageError, "num_images must be at least 1, got 0"),
        ("digit", {"labels": "cat"}, UsageError, "unknown label 'cat'"),
        (3, {}, UsageError, "int"),
        ([], {}, UsageError, "got none"),
        (np.zeros((8, 8, 1)), {}, UsageError, r"got float64 \[8, 8, 1\]"),
        (torch.zeros(1, 4, 4), {}, UsageError, r"got \[1, 1, 4, 4\]"),
        (torch.full((1, 8, 8), 7.0), {}, UsageError, r"values in \[-1, 1\]"),
        ("nowhere.png", {}, ArtifactError, "nowhere.png"),
    ],
)
def test_what_cannot_be_completed_is_named(pipeline, pictures, image, settings, error, named):
    with pytest.raises(error, match=named):
        pipeline.complete(pictures[0] if isinstance(image, str) and image == "digit" else image, **settings)


def test_the_command_draws_what_the_pipeline_does_and_says_when_it_is_done(
    pipeline, pictures, tiny_model, tmp_path, capsys
):
    pictures[3].resize((40, 60)).save(tmp_path / "three.png")
    words = ["complete", "--model", str(tiny_model), "--image", str(tmp_path / "three.png"), "--labels", "three"]
    words += ["--num-images", "5", "--out", str(tmp_path / "out")]
    assert main([*words, "--batch-size", "2"]) == 0
    drawn = np.stack([np.asarray(Image.open(tmp_path / "out" / f"{i:06d}.png")) for i in range(5)])
    expected = pipeline.complete(tmp_path / "three.png", num_images=5, labels="three", output_type="np").images
    assert np.array_equal(drawn, expected[..., 0])
    request = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert request["completion"]["rows"] == 2
    assert main(words) == 0
    assert "already holds these 5 images" in capsys.readouterr().out
    assert main([*words, "--keep", "0.25"]) == 2
    assert "completion" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("image", "flags", "code", "named"),
    [
        ("nowhere.png", [], 3, "nowhere.png does not exist"),
        ("text.png", [], 3, "text.png is not a readable picture"),
        ("zero.png", ["--keep", "2"], 2, "got 2"),
        ("zero.png", ["--top-k", "0"], 2, "top_k"),
    ],
)
def test_a_failing_command_leaves_nothing(pictures, tiny_model, tmp_path, capsys, image, flags, code, named):
    pictures[0].save(tmp_path / "zero.png")
    (tmp_path / "text.png").write_text("no picture")
    words = ["complete", "--model", str(tiny_model), "--image", str(tmp_path / image), "--out", str(tmp_path / "out")]
    assert main([*words, *flags]) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert named in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.png", "zero.png"]
