"""Gradients and named numbers of one optimiser step, over the pieces of its batch and over all processes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from vq_prior.core.runtime import Runtime, accumulating, alone, sum_over_processes
from vq_prior.core.shards import TreeSum


class StepSums:
    """Sums over the batch of one optimiser step, whose pieces `Runtime.pieces` cuts.

    Each piece's backward pass leaves its part of the gradient of the mean over the batch; after the last one, every
    parameter's `grad` is the whole. Where the runtime is reproducible, pieces are the logical shards and their parts
    are added in the order of one tree, else they are added as they come and averaged by the wrapper.

    Args:
        runtime: This process.
        wrapped: The module as forward and backward passes use it.
    """

    def __init__(self, runtime: Runtime, wrapped: nn.Module) -> None:
        self._runtime, self._wrapped = runtime, wrapped
        self._gradients, self._numbers, self._names = TreeSum(), TreeSum(), tuple[str, ...]()
        self._parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]

    @contextmanager
    def piece(self, *, last: bool) -> Iterator[None]:
        """Yield for the forward and backward pass of one piece; `last` of this process in this step."""
        if not self._runtime.reproducible:
            with nullcontext() if last else accumulating(self._wrapped):
                yield
            return
        with alone():
            yield
        self._gradients.add(torch.cat([_gradient(parameter).reshape(-1) for parameter in self._parameters]))
        for parameter in self._parameters:
            parameter.grad = None

    def add(self, numbers: Mapping[str, Tensor]) -> None:
        """Add a piece's part of named scalars, the same names with each piece."""
        self._names = tuple(numbers)
        self._numbers.add(torch.stack([number.detach().float() for number in numbers.values()]))

    def finish(self) -> dict[str, Tensor]:
        """Finish the gradients after the last piece, and return this process's part of the numbers."""
        numbers = self._numbers.total()
        assert numbers is not None
        if self._runtime.reproducible:
            gradients = self._gradients.total()
            assert gradients is not None
            total = sum_over_processes(torch.cat([gradients, numbers]))
            parts = total.split([*(parameter.numel() for parameter in self._parameters), len(numbers)])
            for parameter, part in zip(self._parameters, parts[:-1], strict=True):
                parameter.grad = part.view_as(parameter)
            # The sum is known: it is the main process's part.
            numbers = parts[-1] if self._runtime.is_main else torch.zeros_like(numbers)
        return dict(zip(self._names, numbers.unbind(), strict=True))


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
