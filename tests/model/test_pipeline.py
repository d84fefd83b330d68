"""The pipeline: what it draws depends on (model, labels, seed, index, settings) and nothing else."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from vq_prior import VQPriorPipeline
from vq_prior.core.errors import ArtifactError, UsageError


@pytest.fixture(scope="module")
def pipeline(tiny_run):
    return VQPriorPipeline.from_pretrained(tiny_run / "model")


def test_an_image_depends_on_its_index_alone(pipeline):
    whole = pipeline(20, seed=3, output_type="np").images
    in_sevens = pipeline(20, seed=3, batch_size=7, output_type="np").images
    one = pipeline(1, seed=3, first_index=13, labels="three", output_type="np").images
    assert np.array_equal(whole, in_sevens)
    assert np.array_equal(whole[13], one[0])
    assert not np.array_equal(whole, pipeline(20, seed=4, output_type="np").images)


def test_labels_cycle_and_match_names_before_indices(pipeline):
    assert pipeline(4, labels=["seven", "2"]).labels == [7, 2, 7, 2]
    assert pipeline(12).labels == [*range(10), 0, 1]


def test_output_types_hold_the_same_pixels(pipeline):
    pictures = pipeline(3, output_type="pil").images
    arrays = pipeline(3, output_type="np").images
    tensors = pipeline(3, output_type="pt").images
    assert [p.size for p in pictures] == [(8, 8)] * 3
    assert np.array_equal(np.stack([np.asarray(p) for p in pictures]), arrays[..., 0])
    assert tensors.shape == (3, 1, 8, 8)
    assert tensors.min() >= -1
    assert tensors.max() <= 1


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_codes_decode_to_the_images(pipeline, guidance_scale):
    drawn = pipeline(5, guidance_scale=guidance_scale, output_type="pt")
    assert torch.equal(pipeline.codec.decode(drawn.codes), drawn.images)


def test_save_pretrained_gives_the_same_images(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "copy")
    again = VQPriorPipeline.from_pretrained(tmp_path / "copy")
    assert np.array_equal(again(6, output_type="np").images, pipeline(6, output_type="np").images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_a_stream_gives_the_images_of_a_call_in_batches(pipeline, output_type):
    settings = {"labels": ["one", "two"], "seed": 5, "first_index": 3, "guidance_scale": 2.0}
    whole = pipeline(10, batch_size=64, output_type=output_type, **settings)
    batches = list(pipeline.stream(10, batch_size=4, output_type=output_type, **settings))
    assert [len(batch.images) for batch in batches] == [4, 4, 2]
    assert [label for batch in batches for label in batch.labels] == whole.labels
    assert torch.equal(torch.cat([batch.codes[0] for batch in batches]), whole.codes[0])
    streamed = [np.asarray(image) for batch in batches for image in batch.images]
    assert np.array_equal(streamed, [np.asarray(image) for image in whole.images])


def test_a_notebook_shows_a_grid_of_the_images(pipeline):
    shown = {kind: pipeline(70, seed=2, output_type=kind)._repr_png_() for kind in ("pil", "np", "pt")}
    assert shown["pil"] == shown["np"] == shown["pt"]
    grid = np.asarray(Image.open(io.BytesIO(shown["pil"])))
    assert grid.shape == (8 * 34 + 2, 8 * 34 + 2)  # 64 of them, each enlarged to 32 pixels, 2 pixels apart
    first = np.asarray(pipeline(1, seed=2).images[0])
    assert np.array_equal(grid[2:34:4, 2:34:4], first)


def test_a_stream_draws_as_it_is_asked_and_checks_before(pipeline, monkeypatch):
    drawn = []
    draw = pipeline.draw
    monkeypatch.setattr(pipeline, "draw", lambda *args, **given: drawn.append(1) or draw(*args, **given))
    stream = pipeline.stream(6, batch_size=2)
    assert not drawn
    next(stream)
    assert len(drawn) == 1
    tokens = pipeline.prior.layout.to_tokens(pipeline(2).codes)
    for wrong in ({"num_images": 0}, {"num_images": 3, "given": tokens}, {"labels": "cat"}, {"temperature": -1.0}):
        with pytest.raises(UsageError):
            pipeline.stream(**wrong)
    with pytest.raises(TypeError, match="warmth"):
        pipeline.stream(1, warmth=1.0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 0.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 10**6}, "top_k must be between 1 and"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"guidance_scale": float("inf")}, "guidance_scale"),
        ({"labels": "cat"}, "unknown label 'cat'.*zero, one"),
        ({"labels": "10"}, "unknown label '10'"),
        ({"labels": []}, "labels"),
        ({"num_images": 0}, "num_images"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"output_type": "jpg"}, "output_type"),
    ],
)
def test_a_setting_out_of_range_is_named(pipeline, settings, named):
    with pytest.raises(UsageError, match=named):
        pipeline(**{"num_images": 1, **settings})


@pytest.mark.parametrize("file", ["vqvae/model.safetensors", "prior/model.safetensors", "prior/prior_config.json"])
def test_a_flipped_byte_is_found_before_use(tiny_run, tmp_path, file):
    model = shutil.copytree(tiny_run / "model", tmp_path / "model")
    data = bytearray((model / file).read_bytes())
    data[len(data) // 2] ^= 1
    (model / file).write_bytes(data)
    with pytest.raises(ArtifactError, match=file.split("/")[1]):
        VQPriorPipeline.from_pretrained(model)


def test_an_index_that_disagrees_with_its_components_is_refused(tiny_run, tmp_path):
    model = shutil.copytree(tiny_run / "model", tmp_path / "model")
    index = json.loads((model / "config.json").read_text())
    index["label_names"][0] = "nought"
    (model / "config.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="label_names"):
        VQPriorPipeline.from_pretrained(model)


def test_unconditional_samples_have_no_class_and_are_drawn_from_the_null_prompt(pipeline):
    drawn = pipeline(4, unconditional=True, seed=2, output_type="pt")
    assert drawn.labels is None
    temperature = pipeline.index.sampling.temperature
    null = [pipeline.prior.null_label] * 4
    images, _ = pipeline.draw(null, seed=2, indices=range(4), temperature=temperature)
    assert torch.equal(drawn.images, images)
    with pytest.raises(UsageError, match="labels cannot go with unconditional, got three"):
        pipeline(1, unconditional=True, labels="three")
    with pytest.raises(UsageError, match="guidance_scale must be 1 with unconditional, got 2"):
        pipeline(1, unconditional=True, guidance_scale=2.0)


def test_unconditional_samples_need_a_trained_null_prompt(tiny_run):
    without = VQPriorPipeline.from_pretrained(tiny_run / "model")
    without.prior.unconditional = False
    with pytest.raises(UsageError, match="label_dropout above 0"):
        without(1, unconditional=True)
