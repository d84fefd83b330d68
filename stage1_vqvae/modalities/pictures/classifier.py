"""A small classifier of pictures that is fitted to the data: it judges samples and reconstructions; no download.

It sees uint8 pixels, as a saved picture holds them, so that what is judged is what is kept.

Letters: B images, C channels, D features, K classes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1_vqvae.modalities.pictures.values import to_unit_range
from vq_prior.core.processes.fixed_calls import map_rows
from vq_prior.core.training.fitting import fit_classifier
from vq_prior.core.training.randomness import keyed_generator

MAX_SIDE, MAX_FITTED = 48, 50_000
WIDTHS = (32, 64, 128)
STEPS, BATCH, PEAK_RATE, SHIFT = 800, 64, 4e-3, 1 / 16
ROWS = 32  # of a call, always: a row's bits may depend on how many there are
TURNS = ("upright", "a quarter", "a half", "three quarters")

Pixels = NDArray[np.uint8]


class _Block(nn.Module):
    """Norm, rectifier and convolution, added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(F.relu(self.norm(x)))


class SmallNetwork(nn.Module):
    """A small residual network: three widths, batch norm, mean over the grid; [B, C, side, side] to logits [B, K]."""

    def __init__(self, channels: int, side: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for width in WIDTHS:
            stride = 2 if side > 6 else 1
            layers += [nn.Conv2d(before, width, 3, stride, padding=1), _Block(width)]
            before, side = width, -(-side // stride)
        self.body = nn.Sequential(*layers)
        self.norm, self.head = nn.BatchNorm2d(before), nn.Linear(before, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the mean of the last grid, [B, D]."""
        return F.relu(self.norm(self.body(images))).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K]."""
        return self.head(self.features(images))


def small_side(height: int, width: int) -> int:
    """Return the side of the square that the embedded network sees images of this size in."""
    return min(height, width, MAX_SIDE)


def small_images(pixels: Pixels) -> Tensor:
    """Return pixels [B, height, width, C] as the embedded network sees them, [B, C, side, side] in [-1, 1]."""
    images = to_unit_range(torch.from_numpy(np.ascontiguousarray(pixels)))
    side = small_side(*images.shape[2:])
    if tuple(images.shape[2:]) != (side, side):
        images = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return images


def gather_small(batches: Iterable[Pixels]) -> Tensor:
    """Return batches of pixels as `small_images` in a byte a value, [n, C, side, side]."""
    return torch.cat([((small_images(pixels) + 1) * 127.5).round().to(torch.uint8) for pixels in batches])


@dataclass
class FittedNetwork:
    """The embedded network, fitted to labelled images, or, without labels, to tell how far an image was turned.

    Turned images: Gidaris et al. 2018, "Unsupervised Representation Learning by Predicting Image Rotations".

    Attributes:
        network: In eval mode.
        seed: Of its weights and batches.
        num_fitted: Images it was fitted to.
        labelled: Whether it learnt the classes of the images.
    """

    network: SmallNetwork
    seed: int
    num_fitted: int
    labelled: bool
    scores: dict[str, float] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return what it is, JSON values: `accuracy` is of images it did not see, where there were such."""
        digest = sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        task = "classes of the data" if self.labelled else "quarter turns"
        settings = {"steps": STEPS, "batch_size": BATCH, "learning_rate": PEAK_RATE, "widths": list(WIDTHS)}
        description = {"name": "own", "task": task, "seed": self.seed, "num_fitted": self.num_fitted, **self.scores}
        return {**description, "num_features": WIDTHS[-1], "settings": settings, "weights_sha256": digest.hexdigest()}

    @torch.inference_mode()
    def features(self, pixels: Pixels) -> Tensor:
        """Return the features [B, D] float32 of pixels [B, height, width, C]."""
        features: Tensor = map_rows(self.network.features, ROWS, small_images(pixels))
        return features

    @torch.inference_mode()
    def probabilities(self, pixels: Pixels) -> Tensor:
        """Return the probability of each class, [B, K] float64."""
        logits: Tensor = map_rows(self.network, ROWS, small_images(pixels))
        return logits.double().softmax(dim=-1)

    @torch.inference_mode()
    def accuracy(self, images: Tensor, labels: NDArray[np.int64]) -> float:
        """Return the share of images (as `gather_small` gives them) whose class it names rightly."""
        named = [self.network(_unit(part)).argmax(dim=1) for part in images.split(ROWS)]
        return float((torch.cat(named).numpy() == labels).mean())

    def turn_accuracy(self, images: Tensor) -> float:
        """Return the share of images, each turned in all four ways, whose turn it names rightly."""
        turned = torch.cat([torch.rot90(images, turns, (2, 3)) for turns in range(len(TURNS))])
        return self.accuracy(turned, np.repeat(np.arange(len(TURNS)), len(images)))


def _unit(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def fit_network(
    images: Tensor,
    labels: NDArray[np.int64] | None,
    num_classes: int,
    *,
    seed: int,
    progress: Callable[[int], object] = lambda _: None,
) -> FittedNetwork:
    """Return the embedded network fitted to some images, on the host: a function of its arguments on one machine.

    AdamW, one cycle, images moved by up to a sixteenth of their side.

    Args:
        images: As `gather_small` gives them.
        labels: Class of each, [n]; None to learn quarter turns instead.
        num_classes: Of the labels.
        seed: Of weights and batches.
        progress: Called with 1 after each step.

    Raises:
        NumericError: If the loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(keyed_generator(seed, 0, "evaluator").integers(2**31)))
        network = SmallNetwork(images.shape[1], images.shape[2], num_classes if labels is not None else len(TURNS))
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    most = round(images.shape[2] * SHIFT)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        rng = keyed_generator(seed, step + 1, "evaluator")
        rows = rng.integers(len(images), size=BATCH)
        some = _unit(_shifted(images[torch.from_numpy(rows)], rng, most))
        if labels is None:
            turns = rng.integers(len(TURNS), size=BATCH)
            wanted = torch.from_numpy(turns)
            some = torch.stack([torch.rot90(image, int(turn), (1, 2)) for image, turn in zip(some, turns, strict=True)])
        else:
            wanted = torch.from_numpy(labels[rows])
        return some.contiguous(memory_format=torch.channels_last), wanted

    fit_classifier(network, batch, steps=STEPS, peak=PEAK_RATE, progress=progress)
    return FittedNetwork(network.eval(), seed, len(images), labels is not None)


def _shifted(images: Tensor, rng: np.random.Generator, most: int) -> Tensor:
    """Return images [B, C, side, side] each moved by up to `most` pixels along both axes, the border repeated."""
    side = images.shape[2]
    shifts = torch.from_numpy(rng.integers(-most, most + 1, size=(len(images), 2)))
    y, x = ((torch.arange(side) + shifts[:, axis, None]).clamp(0, side - 1) for axis in (0, 1))
    return images[torch.arange(len(images))[:, None, None], :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2)
