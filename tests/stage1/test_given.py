"""What a codec and a pipeline are given: what is no value of theirs is refused in one line, nothing is converted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stage1_vqvae.architecture import Architecture, VQVAEConfig
from stage1_vqvae.modalities import preprocessing
from stage1_vqvae.modalities.pictures import PICTURES
from stage1_vqvae.modalities.pictures.values import Transform
from stage1_vqvae.model import VQVAE
from stage1_vqvae.quantizer_settings import QuantizerSettings
from vq_prior import VQPriorPipeline
from vq_prior.core.errors import UsageError
from vq_prior.model.given_images import images_of
from vq_prior.model.request import class_of_each


def codec(channels: int = 1, **form: object) -> VQVAE:
    quantizer = QuantizerSettings(name="fsq", num_codes=64, code_dim=2)
    architecture = Architecture(channels, (8, 8), 2, 8, 8, 0, quantizer)
    torch.manual_seed(0)
    described = preprocessing(PICTURES, Transform(8, 8, channels, **form))  # type: ignore[arg-type]
    return VQVAE(VQVAEConfig(architecture), described).eval()


ZEROS = torch.zeros(2, 1, 8, 8)
HOW = r"pixels x of 0\.\.255 become such by x\.float\(\) / 127\.5 - 1"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (ZEROS.to(torch.uint8), rf"floating-point values in \[-1, 1\], got uint8; {HOW}"),
        (ZEROS.to(torch.int64), r"floating-point values in \[-1, 1\], got int64"),
        (ZEROS.bool(), r"got bool"),
        (ZEROS + 255, rf"values in \[-1, 1\], got 255 to 255; {HOW}"),
        (torch.where(torch.arange(8) == 3, 1.03, ZEROS), r"got 0 to 1\.03"),
        (torch.where(torch.arange(8) == 3, -1.03, ZEROS), r"got -1\.03 to 0"),
        (torch.where(torch.arange(8) == 3, torch.nan, ZEROS), r"values in \[-1, 1\], got NaN"),
        (torch.where(torch.arange(8) == 3, torch.inf, ZEROS), r"got 0 to inf"),
        (ZEROS[0], r"must have shape \[B, 1, 8, 8\], got \[1, 8, 8\]"),
        (ZEROS.numpy(), r"must be a tensor, got ndarray"),
        (None, r"must be a tensor, got NoneType"),
    ],
)
def test_what_is_no_value_is_refused_with_range_and_conversion(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec().encode(images)
    with pytest.raises(UsageError, match=message):
        codec().encode_latents(images)


def test_values_a_little_beyond_and_of_other_floats_are_taken() -> None:
    model, ramp = codec(), torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    for images in (ramp * 1.019, ramp.half(), ramp.double(), ramp.bfloat16()):
        (codes,) = model.encode(images)
        assert codes.shape == (1, 4, 4)
    assert torch.equal(model.encode(ramp.double())[0], model.encode(ramp)[0])


def test_conversion_is_that_of_the_codecs_own_range() -> None:
    with pytest.raises(ValueError, match=r"x of -704\.\.1408 become such by \(x\.float\(\) - -704\) / 1056 - 1"):
        codec(range=(-704, 1408)).encode(ZEROS + 900)


def test_codes_that_are_no_tensors_of_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"codes\[0\] must be integers, got float32"):
        codec().decode((torch.zeros(1, 4, 4),))
    zeros = torch.zeros(1, 4, 4, dtype=torch.int64)
    for codes in (zeros, zeros[0], (zeros.numpy(),), [zeros.tolist()]):
        with pytest.raises(ValueError, match="codes must be a tuple with a tensor of integers for each level"):
            codec().decode(codes)
    assert codec().decode((zeros.to(torch.uint8),)).shape == (1, 1, 8, 8)


@pytest.mark.parametrize("change", [lambda m: m.to(torch.float16), lambda m: m.half(), lambda m: m.bfloat16()])
def test_codec_of_less_than_float32_says_so(change) -> None:
    less = change(codec())
    for call in (lambda: less.encode(ZEROS), lambda: less.decode((torch.zeros(1, 4, 4, dtype=torch.int64),))):
        with pytest.raises(ValueError, match=r"encodes and decodes in float32, and this one is b?float16"):
            call()
    assert len(less.float().encode(ZEROS)[0]) == 2


def test_grey_arrays_without_an_axis_of_channels_are_images() -> None:
    model, pixels = codec(), np.arange(64, dtype=np.uint8).reshape(8, 8)
    expected = pixels / 127.5 - 1
    for given in (pixels, pixels[..., None], [pixels], pixels[None], Image.fromarray(pixels)):
        assert np.allclose(images_of(given, model)[0, 0], expected, atol=1e-6)
    assert images_of(np.stack([pixels] * 5), model).shape == (5, 1, 8, 8)
    assert images_of(np.stack([pixels] * 5)[..., None], model).shape == (5, 1, 8, 8)
    assert torch.equal(images_of(torch.zeros(8, 8), model), ZEROS[:1])
    assert np.array_equal(images_of(pixels, codec(3))[0], np.broadcast_to(images_of(pixels, model)[0], (3, 8, 8)))
    with pytest.raises(
        ValueError, match=r"uint8 pixels \[height, width\] or .* got float64 \[8, 8\]; numbers of 0\.\.1"
    ):
        images_of(pixels / 255, model)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (np.array([2, 0]), [2, 0]),
        (np.array(["b", "c"]), [1, 2]),
        (np.int64(2), [2]),
        (np.str_("b"), [1]),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.tensor(2), [2]),
        ([torch.tensor(1), np.int32(0), "c"], [1, 0, 2]),
        (("a", 1), [0, 1]),
    ],
)
def test_labels_of_numpy_and_torch_are_labels(labels, classes: list[int]) -> None:
    assert class_of_each(labels, 3, ("a", "b", "c")) == classes


@pytest.mark.parametrize("labels", [np.array([0.5]), torch.tensor([1.0]), 1.0, [None], [["a"]], b"a"])
def test_labels_that_are_neither_names_nor_numbers_are_refused(labels) -> None:
    with pytest.raises(ValueError, match="labels must be names or whole numbers, got"):
        class_of_each(labels, 3, ("a", "b", "c"))


def test_pipeline_takes_numbers_of_numpy_and_refuses_the_rest_in_one_line(tiny_model: Path) -> None:
    pipe = VQPriorPipeline.from_pretrained(tiny_model)
    plain = pipe(2, seed=3, first_index=1, labels=[4, 5], output_type="pt").images
    same = pipe(np.int64(2), seed=np.int64(3), first_index=torch.tensor(1), labels=np.array([4, 5]), output_type="pt")
    assert torch.equal(same.images, plain)
    for wrong, message in (
        ({"seed": None}, r"seed must be a whole number between 0 and \d+, got None"),
        ({"seed": 1.5}, "seed must be a whole number"),
        ({"seed": "3"}, "seed must be a whole number"),
        ({"first_index": -1}, "first_index must be between 0"),
        ({"num_images": 2.0}, "num_images must be a whole number"),
        ({"batch_size": 1.5}, "batch_size must be a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(**wrong)
    with pytest.raises(ValueError, match=r"a pipeline computes in float32, got float16; precision='bf16'"):
        pipe.to(torch.float16)
    assert pipe.to(torch.device("cpu")) is pipe
