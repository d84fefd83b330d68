"""Features of a small network that the program fits to the data itself: no download, any number of axes.

What is compared are local means and deviations of its features, which say what a place looks like and not where each
grain of a texture lies (after Gatys et al. 2015, "Texture synthesis using convolutional neural networks", in windows).

It is fitted to the classes of the data; without classes, to tell how far a picture was turned (Gidaris et al. 2018), or
along which axes other data were reversed. Letters: B batch, C channels, n rows.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stage1_vqvae.blocks import conv, ordered, reduce
from stage1_vqvae.perceptual.contract import Making, Perceptual, Rows, statistics_distance
from vq_prior.core.processes.threads import using_threads
from vq_prior.core.training.fitting import fit_classifier
from vq_prior.core.training.randomness import keyed_generator

WIDTHS = (32, 64, 128)
WINDOW = 4  # places of a window, an axis
STEPS, BATCH, PEAK_RATE = 500, 64, 4e-3
LONGEST = 48  # side of what it is fitted to; of larger values random parts
LEAST_SIDE = 6  # of what is halved
SCALED_BY = 256  # rows


class _Norm(nn.modules.batchnorm._BatchNorm):
    """A batch norm over any number of axes."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Take whatever comes."""


class FeatureNetwork(nn.Module):
    """Convolutions at three resolutions; the maps after each. [B, C, *shape] -> [B, width, *fewer places] each."""

    def __init__(self, channels: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        rank, side, before = len(shape), min(max(shape), LONGEST), channels
        self.stages = nn.ModuleList()
        for number, width in enumerate(WIDTHS):
            halves = side > LEAST_SIDE and (number > 0 or max(shape) > LONGEST)
            first = reduce(before, width, (2,) * rank) if halves else conv(rank, before, width, 3)
            layers = [first, _Norm(width)]
            layers += [conv(rank, width, width, 3), _Norm(width)] if number else []
            self.stages.append(nn.ModuleList(layers))
            before, side = width, -(-side // 2) if halves else side

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the features after each stage."""
        found = []
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for layer, norm in zip(stage[::2], stage[1::2], strict=True):
                x = F.relu(norm(layer(x)))
            found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of the last map, [B, width]."""
        return self.maps(x)[-1].flatten(2).mean(dim=2)

    @torch.no_grad()
    def folded(self) -> None:
        """Take every norm into the convolution before it, which the frozen network then computes in one go."""
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for place in range(0, len(stage), 2):
                if isinstance(norm := stage[place + 1], _Norm):
                    convolution: Any = stage[place].eval()
                    stage[place] = fuse_conv_bn_eval(convolution, norm.eval())
                    stage[place + 1] = nn.Identity()


class OwnFeatures(Perceptual):
    """Local statistics of the features of a network fitted to the data's classes, or, without any, to turns."""

    weight: ClassVar[float] = 0.1
    fitted: ClassVar[bool] = True
    sees_labels: ClassVar[bool] = True

    def __init__(self, making: Making) -> None:
        super().__init__(making)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(keyed_generator(making.seed, 0, "perceptual weights").integers(2**63)))
            self.network = FeatureNetwork(making.spec.channels, making.spec.shape)
        self.network.folded()  # what checkpoints hold has these names
        for number, width in enumerate(WIDTHS):
            self.register_buffer(f"scale_{number}", torch.ones(width))

    @property
    def fit_steps(self) -> int:
        """Optimiser steps of `fit`."""
        return STEPS

    def fit(self, making: Making, rows: Rows, *, steps: int | None = None) -> None:
        """Fit the network, on the host with one thread: a function of seed and data."""
        steps = self.fit_steps if steps is None else steps
        labels = making.labels if making.num_classes > 1 and self.sees_labels else None
        spec, rank = making.spec, len(making.spec.shape)
        ways = turns_of(rank)
        num_classes = making.num_classes if labels is not None else len(ways)
        with torch.random.fork_rng(devices=[]), using_threads(1):
            torch.manual_seed(int(keyed_generator(making.seed, 1, "perceptual weights").integers(2**63)))
            network = FeatureNetwork(spec.channels, spec.shape)
            classifier = nn.Sequential(network, nn.Linear(WIDTHS[-1], num_classes))

            def batch(step: int) -> tuple[Tensor, Tensor]:
                rng = keyed_generator(making.seed, step + 1, "perceptual batch")
                chosen = rng.integers(len(rows), size=BATCH)
                values = parts_of(rows.batch(chosen), rng, square=labels is None and rank == 2)
                if labels is not None:
                    return ordered(values), torch.from_numpy(labels[chosen])
                wanted = rng.integers(len(ways), size=BATCH)
                turned = [ways[way](value) for way, value in zip(wanted, values, strict=True)]
                return ordered(torch.stack(turned)), torch.from_numpy(wanted)

            what = f"{num_classes} classes" if labels is not None else "turns"
            making.say(f"fitting the network of the perceptual loss to {what} of {len(rows)} rows, {steps} steps")
            fit_classifier(classifier, batch, steps=steps, peak=PEAK_RATE)
            network.eval().folded()
            self.network.load_state_dict(network.state_dict())
            self._scale(rows)

    @torch.no_grad()
    def _scale(self, rows: Rows) -> None:
        """Note how much each feature differs from place to place."""
        count = min(SCALED_BY, len(rows))
        some = rows.batch(np.arange(count, dtype=np.int64) * len(rows) // count)
        for number, features in enumerate(self.network.eval().maps(some)):
            spread = features.transpose(0, 1).flatten(1).std(dim=1)
            getattr(self, f"scale_{number}").copy_(spread.clamp_min(0.05 * float(spread.mean()) + 1e-6))

    def forward(self, images: Tensor, copies: Tensor) -> Tensor:
        """Return the distance, the mean over the three maps."""
        with torch.no_grad():
            wanted = self.network.maps(ordered(images))
        total = copies.new_zeros((), dtype=torch.float32)
        for number, (first, second) in enumerate(zip(wanted, self.network.maps(ordered(copies)), strict=True)):
            total = total + statistics_distance(first, second, getattr(self, f"scale_{number}"), WINDOW)
        return total / len(WIDTHS)


class TurnFeatures(OwnFeatures):
    """The same, fitted to turns although the data have classes."""

    sees_labels: ClassVar[bool] = False


class RandomFeatures(OwnFeatures):
    """The same, of a network that is not trained at all: its weights are as they were drawn."""

    @property
    def fit_steps(self) -> int:
        """None: nothing is learnt."""
        return 0

    def fit(self, _making: Making, rows: Rows, *, steps: int | None = None) -> None:  # noqa: ARG002
        """Note how much each feature differs from place to place."""
        with using_threads(1):
            self._scale(rows)


def parts_of(values: Tensor, rng: np.random.Generator, *, square: bool = False) -> Tensor:
    """Return a part of each value [n, C, *shape] at a random place.

    Of a larger one it has at most 48 places along an axis; a smaller one is moved by up to a sixteenth, the border
    repeated. `square` gives all axes the same.
    """
    shape = values.shape[2:]
    sides = [min(side, LONGEST, *(shape if square else ())) for side in shape]
    most = [max(1, round(side / 16)) if part == side else 0 for side, part in zip(shape, sides, strict=True)]
    padded = F.pad(values, [count for each in reversed(most) for count in (each, each)], mode="replicate")
    rooms = [room - side + 1 for room, side in zip(padded.shape[2:], sides, strict=True)]
    starts = rng.integers(rooms, size=(len(values), len(shape)))
    pieces = []
    for value, start in zip(padded, starts, strict=True):
        part = value
        for axis, (first, side) in enumerate(zip(start, sides, strict=True), start=1):
            part = part.narrow(axis, int(first), side)
        pieces.append(part)
    return torch.stack(pieces)


def turns_of(rank: int) -> list[Callable[[Tensor], Tensor]]:
    """Return the ways in which a value [C, *shape] is turned: quarter turns of pictures, else axes reversed."""
    if rank == 2:
        return [partial(torch.rot90, k=times, dims=(1, 2)) for times in range(4)]
    axes = [[axis for axis, chosen in enumerate(some, start=1) if chosen] for some in product((0, 1), repeat=rank)]
    return [partial(torch.flip, dims=some) for some in axes]
