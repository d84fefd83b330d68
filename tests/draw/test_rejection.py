"""Rejection by a classifier: each image is the best of its own candidates, whatever is drawn beside it."""

import json

import numpy as np
import pytest
import torch
from classifiers import DIGITS, write_classifier
from PIL import Image
from transformers import ViTForImageClassification, ViTImageProcessor

from vq_prior import VQPriorPipeline
from vq_prior.cli import main
from vq_prior.core.disk.artifacts import write_atomic
from vq_prior.core.errors import UsageError
from vq_prior.draw import sampler
from vq_prior.draw.rejection import Classifier, candidates_of, find_classifier


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Knows the digits by name, in another order."""
    return write_classifier(tmp_path_factory.mktemp("classifier") / "vit", DIGITS[::-1])


@pytest.fixture(scope="module")
def words(classifier, tiny_model):
    """The command for six sevens, each the best of four."""
    words = ["generate", "--model", tiny_model, "--num-images", 6, "--labels", "seven", "--temperature", 2]
    return [*map(str, words), "--reject-with", str(classifier), "--keep", "0.25"]


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory):
    """The folder of these, drawn at once."""
    out = tmp_path_factory.mktemp("drawn") / "whole"
    assert main([*words, "--out", str(out)]) == 0
    return out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_image_is_the_best_of_its_candidates(whole, classifier, tiny_model):
    pipeline = VQPriorPipeline.from_pretrained(tiny_model)
    candidates = pipeline(24, labels="seven", temperature=2.0, output_type="pt").images
    stock = ViTForImageClassification.from_pretrained(classifier)
    with torch.no_grad():
        p = stock(candidates).logits.double().softmax(-1)[:, DIGITS[::-1].index("seven")].view(6, 4)
    told = json.loads((whole / "samples.json").read_text())
    assert [row["candidate"] for row in told["kept"]] == [4 * n + int(best) for n, best in enumerate(p.argmax(1))]
    # The stock model sees another number of rows at once.
    np.testing.assert_allclose([row["score"] for row in told["kept"]], p.amax(1), rtol=1e-4)
    assert np.mean([row["score"] for row in told["kept"]]) > float(p.mean())
    pixels = pipeline(24, labels="seven", temperature=2.0, output_type="np").images
    for number, row in enumerate(told["kept"]):
        picture = np.asarray(Image.open(whole / f"{number:06d}.png"))
        assert np.array_equal(picture, pixels[row["candidate"]][..., 0])


def test_the_batch_size_and_an_interruption_leave_no_trace(whole, words, tmp_path, monkeypatch):
    def stop_at_the_fifth(path, file, **how):
        if path.name == "000004.png":
            raise KeyboardInterrupt
        write_atomic(path, file, **how)

    where = ["--batch-size", "9", "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(sampler, "write_atomic", stop_at_the_fifth)
        assert main([*words, *where]) == 75
    assert main([*words, *where]) == 0
    assert contents(tmp_path / "out") == contents(whole)
    assert main([*words, *where, "--overwrite"]) == 0
    assert contents(tmp_path / "out") == contents(whole)
    assert main([*words[:-4], *where]) == 2  # other images


def test_classes_match_by_name_then_by_index(classifier, tmp_path):
    assert find_classifier(classifier, ("three", "nine")).columns == (6, 0)
    unnamed = write_classifier(tmp_path / "unnamed", [f"LABEL_{n}" for n in range(3)])
    found = find_classifier(unnamed, ("a", "b", "c"))
    assert found.columns == (0, 1, 2)
    assert "by index" in found.note
    with pytest.raises(UsageError, match=r"names 10 classes, 1 of the model's 2 among them \(not: cat\)"):
        find_classifier(classifier, ("three", "cat"))


def test_images_enter_through_the_classifiers_own_processor(tmp_path):
    folder = write_classifier(tmp_path / "vit", DIGITS, image_size=16, num_channels=3)
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.2] * 3, image_std=[0.4] * 3)
    plain = Classifier(find_classifier(folder, DIGITS), (1, 8, 8), torch.device("cpu"))
    processor.save_pretrained(folder)
    judge = Classifier(find_classifier(folder, DIGITS), (1, 8, 8), torch.device("cpu"))
    images = torch.rand((5, 1, 8, 8), generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = [Image.fromarray(p).convert("RGB") for p in ((images[:, 0] + 1) * 127.5).round().byte().numpy()]
    stock = ViTForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        logits = stock(**processor(pictures, return_tensors="pt")).logits
    expected = logits.double().softmax(-1)[torch.arange(5), [3, 1, 4, 1, 5]]
    p = judge.probabilities(images, [3, 1, 4, 1, 5])
    torch.testing.assert_close(p, expected, atol=1e-3, rtol=1e-2)  # torchvision resizes otherwise than Pillow
    assert torch.equal(p[2:3], judge.probabilities(images[2:3], [4]))
    assert not torch.allclose(p, plain.probabilities(images, [3, 1, 4, 1, 5]), rtol=0.05)


@pytest.mark.parametrize(("keep", "candidates"), [(1.0, 1), (0.5, 2), (0.3333, 3), (0.1, 10), (0.001, 1000)])
def test_the_share_is_one_of_m(keep, candidates):
    assert candidates_of(keep) == candidates


@pytest.mark.parametrize("keep", [0.0, -0.5, 0.3, 0.75, 1.5, 1e-9, float("nan")])
def test_another_share_is_refused(keep):
    with pytest.raises(UsageError, match=f"keep must be 1/m .* got {keep}"):
        candidates_of(keep)


def test_what_does_not_fit_is_one_line_and_leaves_nothing(classifier, tiny_model, tmp_path, capsys):
    def fails(code, named, *flags):
        out = tmp_path / "out"
        assert main([*map(str, ("generate", "--model", tiny_model, "--out", out, *flags))]) == code
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert named in line
        assert not out.exists()
        assert not (tmp_path / ".out.partial").exists()

    fails(2, "--reject-with goes with --keep", "--reject-with", classifier)
    fails(2, "--keep goes with --reject-with", "--keep", 0.5)
    fails(2, "got 0.3", "--reject-with", classifier, "--keep", 0.3)
    fails(2, "--unconditional", "--reject-with", classifier, "--keep", 0.5, "--unconditional")
    fails(3, "nowhere does not exist", "--reject-with", tmp_path / "nowhere", "--keep", 0.5)
    fails(3, "no image classifier of transformers", "--reject-with", tiny_model / "prior", "--keep", 0.5)
    headless = write_classifier(tmp_path / "headless", DIGITS)
    config = json.loads((headless / "config.json").read_text())
    (headless / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    fails(3, "the weights lack vit.", "--reject-with", headless, "--keep", 0.5)
    (headless / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.y"}}))
    fails(3, "asks to run code (auto_map)", "--reject-with", headless, "--keep", 0.5)
    (headless / "model.safetensors").rename(headless / "pytorch_model.bin")
    (headless / "config.json").write_text(json.dumps(config))
    fails(3, "has no model.safetensors", "--reject-with", headless, "--keep", 0.5)
