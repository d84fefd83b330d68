"""Evaluation: every number against another program or a formula written out, and a result that does not change."""

import json
import math

import numpy as np
import pytest
import torch
from classifiers import DIGITS, write_classifier
from doctor_cases import digit_folder
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel

from stage1_vqvae.codecs import open_codec
from stage1_vqvae.data.loading import load_rows
from stage1_vqvae.data.sources import open_data
from stage1_vqvae.modalities.pictures.classifier import fit_network, gather_small
from stage1_vqvae.modalities.pictures.quality import psnr as psnr_of
from stage1_vqvae.modalities.pictures.quality import ssim as ssim_of
from vq_prior.cli import main
from vq_prior.core.training.frechet import frechet_distance
from vq_prior.judge.evaluator import NamedFeatures
from vq_prior.judge.features import (
    inception_score,
    kernel_distance,
    neighbour_distances,
    overlap,
)


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray]:
    """Two sets of features of different spread, place and number."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(24, 24))
    first = np.maximum(rng.normal(size=(700, 24)) @ mixing, 0) / 3
    second = np.maximum(rng.normal(size=(450, 24)) @ mixing * 0.8 + 0.3, 0) / 3
    return first, second


def tensors(sets):
    return tuple(map(torch.from_numpy, sets))


def test_frechet_distance_is_the_formula_and_that_of_torchmetrics(sets):
    from torchmetrics.image.fid import FrechetInceptionDistance

    first, second = sets
    means, covariances = [x.mean(0) for x in sets], [np.cov(x, rowvar=False) for x in sets]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0)).sum()
    formula = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * product
    ours = frechet_distance(*tensors(sets))
    assert ours == pytest.approx(formula, rel=1e-4)

    class Same(torch.nn.Module):
        num_features = 24

        def forward(self, x):
            return x

    theirs = FrechetInceptionDistance(feature=Same()).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(second), real=True)  # at once, not in parts
    theirs.update(torch.from_numpy(first), real=False)
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)
    assert frechet_distance(torch.from_numpy(first), torch.from_numpy(first)) == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_the_unbiased_estimate_over_all_pairs(sets):
    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x):
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    first, second = sets
    expected = within(first) + within(second) - 2 * kernel(first, second).mean()
    assert kernel_distance(*tensors(sets)) == pytest.approx(expected, rel=1e-9)


def test_overlap_is_what_its_papers_define(sets):
    samples, reference = sets

    def distances(x, y):
        return np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))

    def radii(x, k):
        return np.sort(distances(x, x), axis=1)[:, k]  # the point itself comes first

    between = distances(samples, reference)
    found = overlap(*tensors(sets))
    assert found.precision == (between <= radii(reference, 3)).any(1).mean()
    assert found.recall == (between <= radii(samples, 3)[:, None]).any(0).mean()
    assert found.density == pytest.approx((between <= radii(reference, 5)).sum() / (5 * len(samples)))
    assert found.coverage == (between <= radii(reference, 5)).any(0).mean()
    whole = overlap(torch.from_numpy(reference), torch.from_numpy(reference))
    assert (whole.precision, whole.recall, whole.coverage) == (1, 1, 1)
    nearest = neighbour_distances(torch.from_numpy(reference), 2).numpy()
    assert np.allclose(np.sqrt(nearest), np.sort(distances(reference, reference), axis=1)[:, 1:3])
    with pytest.raises(ValueError, match="more than 5 images"):
        overlap(torch.zeros(5, 3), torch.zeros(9, 3))


def test_inception_score_lies_between_one_and_the_number_of_classes(sets):
    p = np.exp(sets[0][:, :10])
    p /= p.sum(1, keepdims=True)
    expected = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
    assert inception_score(torch.from_numpy(p)) == pytest.approx(expected, rel=1e-9)
    assert inception_score(torch.eye(10)) == pytest.approx(10)
    assert inception_score(torch.full((7, 10), 0.1)) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 48, 40)])
def test_psnr_and_ssim_are_those_of_scikit_image(shape):
    rng = np.random.default_rng(1)
    first = rng.uniform(-1, 1, size=(4, *shape)).astype(np.float32)
    second = np.clip(first + rng.normal(scale=0.2, size=first.shape), -1, 1).astype(np.float32)
    psnr, ssim = (measure(torch.from_numpy(first), torch.from_numpy(second)).numpy() for measure in (psnr_of, ssim_of))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2.0}
    for number, (x, y) in enumerate(zip(first.astype(np.float64) + 1, second.astype(np.float64) + 1, strict=True)):
        assert psnr[number] == pytest.approx(peak_signal_noise_ratio(x, y, data_range=2.0), rel=1e-5)
        assert ssim[number] == pytest.approx(structural_similarity(x, y, channel_axis=0, **window), rel=1e-5)


def evaluated(out, *words):
    assert main(["evaluate", *map(str, words), "--out", str(out)]) == 0
    return json.loads(out.read_text())


@pytest.mark.usefixtures("quick")
def test_two_runs_agree_to_the_digit_and_hold_all_they_depend_on(tiny_model, tmp_path, capsys):
    words = ("--model", tiny_model, "--data", "digits", "--num-images", 100)
    result = evaluated(tmp_path / "a.json", *words)
    assert "samples fid" in capsys.readouterr().out
    assert evaluated(tmp_path / "b.json", *words, "--batch-size", 7, "--num-workers", 1) == result
    assert result["reference"] == {"split": "train", "num_images": 100} | {
        "pixels_sha256": result["reference"]["pixels_sha256"]
    }
    assert result["samples"]["num_images"] == 100
    assert result["samples"]["sampling"]["temperature"] > 0
    assert result["versions"].keys() >= {"torch", "numpy", "torchmetrics"}
    assert result["evaluator"]["name"] == "own"
    assert 0 <= result["evaluator"]["accuracy"] <= 1
    budget = result["error_budget"]
    assert budget["fid"] == result["samples"]["fid"]
    assert budget["rfid"] == result["reconstructions"]["fid"]
    assert budget["fid_less_rfid"] == pytest.approx(budget["fid"] - budget["rfid"])
    assert result["codec"]["ms_ssim"] is None  # five scales do not fit into eight pixels
    other = evaluated(tmp_path / "c.json", *words, "--seed", 1)
    assert other["samples"]["pixels_sha256"] != result["samples"]["pixels_sha256"]
    assert other["reference"] == result["reference"]


@pytest.mark.usefixtures("quick")
def test_a_codec_alone_has_no_samples(tiny_run, tmp_path):
    result = evaluated(tmp_path / "e.json", "--codec", tiny_run, "--data", "digits", "--num-images", 100)
    assert "samples" not in result
    assert "prior" not in result
    assert result["reconstructions"]["fid"] > 0
    assert result["codec"]["psnr"] > 0


@pytest.mark.usefixtures("quick")
def test_without_labels_the_evaluator_learns_quarter_turns(tmp_path):
    data = digit_folder(tmp_path / "pictures", count=60, classes=False)
    run = tmp_path / "run"
    assert main(["train-vqvae", "--data", str(data), "--out", str(run), "--steps", "4"]) == 0
    result = evaluated(tmp_path / "e.json", "--codec", run, "--data", data)
    assert result["evaluator"]["task"] == "quarter turns"
    assert result["held_out"] == {"num_images": 3, "fid": None, "kid": None}  # too few for any distance
    assert result["reconstructions"]["fid"] > 0


def test_the_embedded_network_learns_digits_and_does_not_see_its_neighbours(monkeypatch):
    monkeypatch.setattr("stage1_vqvae.modalities.pictures.classifier.STEPS", 250)
    data = open_data("digits")
    pixels = np.stack([data.train.encoded(row) for row in range(len(data.train))])[..., None]
    images = gather_small([pixels])
    assert images.shape == (1708, 1, 8, 8)
    fitted = fit_network(images[:1500], data.train.labels[:1500], 10, seed=0)
    assert fitted.accuracy(images[1500:], data.train.labels[1500:]) > 0.9
    assert math.isclose(float(fitted.probabilities(pixels[:5]).sum()), 5)
    torch.testing.assert_close(fitted.features(pixels[:64])[5], fitted.features(pixels[5:6])[0])


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A transformer with a class token, a network of convolutions, and one of text."""
    folder = tmp_path_factory.mktemp("networks")
    write_classifier(folder / "vit", DIGITS)
    torch.manual_seed(0)
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    ResNetModel(ResNetConfig(num_channels=1, **sizes)).save_pretrained(folder / "resnet")
    text = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(text).save_pretrained(folder / "bert")
    return folder


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("name", "width"), [("vit", 16), ("resnet", 16)])
def test_a_network_of_transformers_judges(name, width, networks, tiny_run, tmp_path):
    words = ("--codec", tiny_run, "--data", "digits", "--num-images", 100, "--evaluator", networks / name)
    result = evaluated(tmp_path / "e.json", *words)
    assert result["evaluator"]["name"] == str(networks / name)
    assert result["reconstructions"]["fid"] > 0
    features = NamedFeatures(networks / name, name, torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 256, size=(9, 8, 8, 1), dtype=np.uint8)
    assert features.features(pixels).shape == (9, width)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--codec", "RUN", "--model", "RUN/model"), 2, "either --codec or --model"),
        (("--codec", "RUN", "--num-images", "0"), 2, "num_images must be between"),
        (("--model", "RUN/model", "--temperature", "-1"), 2, "temperature must be"),
        (("--codec", "RUN", "--evaluator", "nowhere"), 3, "nowhere does not exist"),
        (("--codec", "RUN", "--evaluator", "NETWORKS/bert"), 3, "takes no images"),
        (("--codec", "RUN", "--evaluator", "NETWORKS/code"), 3, "asks to run code"),
        (("--codec", "RUN", "--evaluator", "NETWORKS/quantised"), 3, "is quantised or an adapter"),
        (("--codec", "RUN", "--lpips", "alex"), 5, "needs torchvision"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_one_line(words, code, text, networks, tiny_run, tmp_path, capsys):
    (networks / "code").mkdir(exist_ok=True)
    (networks / "quantised").mkdir(exist_ok=True)
    config = json.loads((networks / "vit" / "config.json").read_text())
    changed = {"code": {"auto_map": {"AutoModel": "evil.Model"}}, "quantised": {"quantization_config": {"bits": 4}}}
    for name, change in changed.items():
        (networks / name / "config.json").write_text(json.dumps(config | change))
    words = [word.replace("RUN", str(tiny_run)).replace("NETWORKS", str(networks)) for word in words]
    assert main(["evaluate", *words, "--data", "digits", "--out", str(tmp_path / "e.json")]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert text in lines[0]
    assert not (tmp_path / "e.json").exists()


@pytest.mark.usefixtures("quick")
def test_large_pictures_have_an_ms_ssim(tmp_path):
    from PIL import Image

    rng, folder = np.random.default_rng(0), tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        small = Image.fromarray(rng.integers(0, 256, size=(6, 6, 3), dtype=np.uint8))
        small.resize((176, 176), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    small = (
        "--image-size",
        "176x176",
        "--model.width",
        "16",
        "--model.residual-width",
        "8",
        "--model.downsampling",
        "8",
        "--batch-size",
        "2",
    )
    words = ["train-vqvae", "--data", str(folder), "--out", str(tmp_path / "run"), "--steps", "3", *small]
    assert main(words) == 0
    result = evaluated(tmp_path / "e.json", "--codec", tmp_path / "run", "--data", folder)
    from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

    codec, held_out = open_codec(tmp_path / "run"), open_data(str(folder)).validation
    images = load_rows(held_out, codec.modality, codec.transform).batch(range(len(held_out)))
    theirs = MultiScaleStructuralSimilarityIndexMeasure(data_range=2.0)
    theirs.update(codec.decode(codec.encode(images)) + 1, images + 1)
    assert result["codec"]["ms_ssim"] == pytest.approx(float(theirs.compute()), rel=1e-5)
    assert result["evaluator"]["task"] == "quarter turns"
