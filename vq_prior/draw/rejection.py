"""Rejection sampling by a classifier: of several candidates for an image, the one that shows its class best.

After Razavi et al. 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2", section 3.3. There the best share of
one large set of samples a class is kept. Here each image is the best of its own m candidates, samples i*m to i*m+m-1:
it depends on nothing but itself, so that a set can be drawn in parts, by many processes, and continued. The mean score
of what is kept is a little lower than that of the best share of the whole set.

Letters: B images, C classes of the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stage1_vqvae.modalities.pictures.networks import CONFIG, check_network, files_id, load_network, network_inputs
from vq_prior.core.errors import ArtifactError, NumericError, UsageError, in_one_line
from vq_prior.core.labels import one_form
from vq_prior.core.processes.fixed_calls import map_rows

ROWS = 16
MAX_CANDIDATES = 1000

Draw = Callable[[list[int], list[int]], Tensor]


def candidates_of(keep: float) -> int:
    """Return m, the candidates of each image, of the share 1/m that is kept.

    Raises:
        UsageError: If it is no such share.
    """
    candidates = round(1 / keep) if 1 / MAX_CANDIDATES <= keep <= 1 else 0
    if not candidates or abs(keep * candidates - 1) > 2e-3:  # 0.333 stands for a third
        raise UsageError(f"keep must be 1/m for a whole number m up to {MAX_CANDIDATES} (0.5, 0.25, ...), got {keep}")
    return candidates


@dataclass(frozen=True)
class ClassifierFiles:
    """A classifier's folder, checked but not read.

    Attributes:
        folder: Where it is.
        columns: Which of its classes each class of the model is, [C].
        classifier_id: sha256 over its files.
        note: How the classes were matched.
    """

    folder: Path
    columns: tuple[int, ...]
    classifier_id: str
    note: str


def find_classifier(folder: Path, label_names: Sequence[str]) -> ClassifierFiles:
    """Return the image classifier in a folder, its classes matched to a model's by name, or else by index.

    Raises:
        UsageError: If the model has no classes, or the classes do not match.
        ArtifactError: If it is missing, no image classifier that transformers knows, or asks to run code.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN

    if not label_names:
        raise UsageError("--reject-with needs a model with classes, this one has none")
    config, files = check_network(folder, tuple(KNOWN), "image classifier of transformers' own")
    columns, note = _match(_class_names(config, folder), label_names, folder)
    return ClassifierFiles(folder, columns, files_id(folder, files), note)


def _class_names(config: dict[str, Any], folder: Path) -> list[str]:
    names = config.get("id2label", {"0": "LABEL_0", "1": "LABEL_1"})  # what transformers leaves out and assumes
    if not isinstance(names, dict) or sorted(names) != sorted(map(str, range(len(names)))):
        raise ArtifactError(f"{folder / CONFIG}: id2label must name the classes 0, 1, ...")
    return [str(names[str(number)]) for number in range(len(names))]


def _match(theirs: Sequence[str], ours: Sequence[str], folder: Path) -> tuple[tuple[int, ...], str]:
    theirs, ours = [*map(one_form, theirs)], [*map(one_form, ours)]
    common = set(theirs) & set(ours)
    if len(common) == len(ours):
        return tuple(theirs.index(name) for name in ours), "classes of the classifier matched by name"
    if not common and len(theirs) == len(ours):
        return tuple(range(len(ours))), "classes of the classifier matched by index: none has a name of the model's"
    missing = ", ".join([name for name in ours if name not in common][:5])
    raise UsageError(
        f"{folder} names {len(theirs)} classes, {len(common)} of the model's {len(ours)} among them (not: {missing}); "
        "give a classifier whose id2label names them all, or as many classes in the same order"
    )


class Classifier:
    """An image classifier of transformers that judges a model's images.

    Where its folder has a `preprocessor_config.json`, images enter through its image processor; else in [-1, 1], grey
    repeated over its channels, at its own size if its config names one.
    """

    def __init__(self, files: ClassifierFiles, shape: tuple[int, ...], device: torch.device) -> None:
        """Load it.

        Args:
            files: From `find_classifier`.
            shape: Channels, height and width of the images that it will see.
            device: Where it runs.

        Raises:
            ArtifactError: If weights are missing or do not fit, or it does not take such images.
        """
        from transformers import AutoModelForImageClassification

        self.files, self.device = files, device
        model, self.processor, _ = load_network(AutoModelForImageClassification, files.folder)
        self.model: nn.Module = model.to(device)
        try:
            self.probabilities(torch.zeros((1, *shape)), [0])
        except NumericError:
            raise
        except Exception as error:  # whatever an architecture makes of a size that is not its own
            raise ArtifactError(f"{files.folder} does not take this model's images: {in_one_line(error)}") from error

    @torch.inference_mode()
    def probabilities(self, images: Tensor, classes: Sequence[int]) -> Tensor:
        """Return the probability of the class that each image was made for, [B] float64; rows are independent.

        Args:
            images: [B, channels, height, width] in [-1, 1].
            classes: The model's class of each.

        Raises:
            NumericError: If a probability is not finite.
        """
        logits = map_rows(self._logits, ROWS, network_inputs(images, self.processor, self.model.config).to(self.device))
        all_classes = logits.double().softmax(dim=-1).cpu()
        columns = torch.tensor([self.files.columns[c] for c in classes])
        chosen = all_classes.gather(1, columns[:, None])[:, 0]
        if not bool(chosen.isfinite().all()):
            raise NumericError(f"{self.files.folder} gives probabilities that are not finite; its weights are broken")
        return chosen

    def _logits(self, inputs: Tensor) -> Tensor:
        return self.model(pixel_values=inputs).logits


@dataclass(frozen=True)
class Kept:
    """Which sample an image is, and the probability of its class that the classifier gives it."""

    candidate: int
    score: float


def best_of(
    draw: Draw, classifier: Classifier, indices: Sequence[int], classes: Sequence[int], *, candidates: int, at_once: int
) -> tuple[Tensor, list[Kept]]:
    """Return the best candidate of each image, [B, channels, height, width], and which it is; of equals the first.

    Args:
        draw: Gives the images of some samples: `draw(indices, classes)`.
        classifier: The judge.
        indices: Of the images; the candidates of image i are samples i * candidates and those that follow.
        classes: Of the images.
        candidates: Of each image.
        at_once: Samples of one call of `draw`.
    """
    samples = [index * candidates + n for index in indices for n in range(candidates)]
    wanted = [c for c in classes for _ in range(candidates)]
    parts, scores = [], []
    for first in range(0, len(samples), at_once):
        here = slice(first, first + at_once)
        parts.append(draw(samples[here], wanted[here]))
        scores.append(classifier.probabilities(parts[-1], wanted[here]))
    table = torch.cat(scores).view(len(indices), candidates)
    best = [int(row) for row in table.argmax(dim=1)]
    rows = [number * candidates + n for number, n in enumerate(best)]
    kept = [Kept(samples[row], float(table[number, n])) for number, (row, n) in enumerate(zip(rows, best, strict=True))]
    return torch.cat(parts)[rows], kept
