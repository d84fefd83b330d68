"""What a codec in training does to held-out rows, as a network sees them, and the weights that did best by it.

The network is a small classifier fitted to the training rows (of other weights than any that is part of the loss), and
the distance is that of Fréchet, of held-out rows from their reconstructions (rFID). Letters: n rows, D features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stage1_vqvae.data.loading import LoadedRows
from stage1_vqvae.evaluate import reconstructed
from stage1_vqvae.modalities.pictures.classifier import (
    MAX_FITTED,
    FittedNetwork,
    SmallNetwork,
    fit_network,
    gather_small,
    small_side,
)
from stage1_vqvae.model import VQVAE
from vq_prior.core.processes.collectives import gather_rows
from vq_prior.core.processes.runtime import Runtime
from vq_prior.core.processes.threads import using_threads
from vq_prior.core.training.frechet import frechet_distance
from vq_prior.core.training.randomness import MAX_SEED

MOST_ROWS, ROWS_AT_ONCE = 2000, 250
WORSE, IN_A_ROW = 1.02, 3  # times the best distance, and how often in a row, after which a second network is ended


class HeldOutJudge:
    """Tells how far reconstructions of held-out rows are from them, in the features of a fitted network.

    Args:
        rows: Held-out rows.
        channels: Of their pictures.
        num_classes: That the network tells apart; 0: it tells turns.
    """

    def __init__(self, rows: LoadedRows, num_classes: int) -> None:
        count = min(MOST_ROWS, len(rows))
        self._rows, self._some = rows, np.arange(count, dtype=np.int64) * len(rows) // count
        height, width, channels = self._pictures(rows.batch(self._some[:1])).shape[1:]
        self.network = SmallNetwork(channels, small_side(height, width), num_classes or 4)
        self._real: Tensor | None = None

    def _pictures(self, values: Tensor) -> Any:
        return self._rows.modality.show.pictures(values)

    def fit(self, train: LoadedRows, labels: Any, num_classes: int, *, seed: int, runtime: Runtime) -> None:
        """Fit the network, on the first process with one thread, and give every process its weights."""
        if runtime.is_main:
            count = min(MAX_FITTED, len(train))
            rows = np.arange(count, dtype=np.int64) * len(train) // count
            parts = (rows[first : first + ROWS_AT_ONCE] for first in range(0, count, ROWS_AT_ONCE))
            images = gather_small(self._pictures(train.batch(part)) for part in parts)
            runtime.say(f"fitting the network that judges held-out reconstructions to {count} rows")
            with using_threads(1):
                classes = None if labels is None or num_classes < 2 else np.asarray(labels)[rows]
                fitted = fit_network(images, classes, num_classes, seed=(seed + 1) % (MAX_SEED + 1))
            self.network.load_state_dict(fitted.network.state_dict())
        for tensor in self.network.state_dict().values():
            tensor.copy_(gather_rows(tensor[None].to(runtime.device))[0].cpu())

    def _features(self, pictures: Any) -> Tensor:
        return FittedNetwork(self.network.eval(), 0, 0, False).features(pictures)

    def distance(self, model: VQVAE, runtime: Runtime) -> float:
        """Return the distance under the model's present weights, measured by the first process, on every process."""
        found = torch.zeros(1, dtype=torch.float64)
        if runtime.is_main:
            real, copied = [], []
            for first in range(0, len(self._some), ROWS_AT_ONCE):
                values = self._rows.batch(self._some[first : first + ROWS_AT_ONCE], runtime.device)
                if self._real is None:
                    real.append(self._features(self._pictures(values)))
                copied.append(self._features(self._pictures(reconstructed(model, values))))
            if self._real is None:
                self._real = torch.cat(real)
            found[0] = frechet_distance(torch.cat(copied), self._real)
        return float(gather_rows(found.float().to(runtime.device))[0])


@dataclass
class Kept:
    """The weights that did best of those that were judged.

    Attributes:
        step: After which they were judged; None before the first time.
        distance: Of them.
        worse: How often in a row what came later was clearly worse.
        tensors: Averaged weights; those of the last step where these did best.
    """

    step: int | None = None
    distance: float = float("inf")
    worse: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def note(self, step: int, distance: float, tensors: Mapping[str, Tensor]) -> bool:
        """Keep these weights if they are the best so far; return whether it got clearly worse, often enough to act."""
        if distance < self.distance:
            self.step, self.distance, self.worse = step, distance, 0
            self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        else:
            self.worse = self.worse + 1 if distance > WORSE * self.distance else 0
        return self.worse >= IN_A_ROW

    def state(self) -> dict[str, Any]:
        """Return what it holds beside tensors, as JSON values."""
        return {"step": self.step, "distance": None if self.step is None else self.distance, "worse": self.worse}

    def load(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take what `state` gave, and the tensors."""
        distance = state["distance"]
        self.step, self.worse = state["step"], int(state["worse"])
        self.distance = float("inf") if distance is None else float(distance)
        self.tensors = dict(tensors)
