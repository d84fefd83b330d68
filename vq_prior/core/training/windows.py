"""What a log line tells of the steps since the line before.

A window is part of a checkpoint: a continued run logs, to the last bit, what an uninterrupted one does.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vq_prior.core.errors import ArtifactError
from vq_prior.core.processes.runtime import Runtime
from vq_prior.core.training.code_use import CodeCounts


class Window:
    """Sums of named numbers, and of the use of codes, over some steps.

    Attributes:
        steps: Optimiser steps in it.
        counts: How often each code of each level occurred.
    """

    def __init__(self, runtime: Runtime, num_codes: tuple[int, ...] = ()) -> None:
        self.steps = 0
        self.counts = CodeCounts(num_codes, runtime.device)
        self._runtime = runtime
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add some numbers of a step, scalars, the same on every process."""
        for name, value in values.items():
            former = self._sums.get(name)
            value = value.detach().float()
            self._sums[name] = value.clone() if former is None else former + value

    def read(self) -> dict[str, float]:
        """Return the mean over the steps of each number, and begin a new window; the counts stay."""
        means = {name: float(total) / self.steps for name, total in self._sums.items()}
        self._sums, self.steps = {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """Return the window as JSON values, the same on every process; every process must call it."""
        sums = {name: float(total) for name, total in sorted(self._sums.items())}
        return {"steps": self.steps, "sums": sums, "counts": self.counts.state()}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Take the state of a checkpoint; the first process takes what was counted.

        Raises:
            ArtifactError: If it is not of this run.
        """
        if state is None:
            return
        try:
            self.steps = int(state["steps"])
            self.counts.load(state["counts"], mine=self._runtime.is_main)
            for name, total in state["sums"].items():
                self._sums[name] = torch.tensor(float(total), device=self._runtime.device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"the log window of the checkpoint is malformed ({error}); pass --overwrite") from error
