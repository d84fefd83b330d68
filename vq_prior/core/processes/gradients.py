"""Gradients and named numbers of one optimiser step, over the pieces of its batch and over all processes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from vq_prior.core.processes.collectives import sum_over_processes
from vq_prior.core.processes.ordered_sums import TreeSum
from vq_prior.core.processes.runtime import Runtime, accumulating, averages_gradients


class StepSums:
    """Sums over the batch of one optimiser step, whose pieces `Runtime.pieces` cuts.

    Each piece's backward pass leaves its part of the gradient of the mean over the batch; after `finish`, every
    parameter's `grad` is the whole. Where the runtime is reproducible, pieces are the logical shards. There and on a
    CPU the parts of pieces and of processes are added in the order of one tree; elsewhere as they come, to save
    memory, and summed over processes by the wrapper, or, where there is none, at once by `finish`.

    Args:
        runtime: This process.
        wrapped: The module as forward and backward passes use it, as `Runtime.wrap` or `shard` returned it.
    """

    def __init__(self, runtime: Runtime, wrapped: nn.Module) -> None:
        self._runtime, self._wrapped = runtime, wrapped
        self._averaged = averages_gradients(wrapped)
        self._ordered = runtime.reproducible or (runtime.device.type == "cpu" and not self._averaged)
        self._gradients, self._numbers, self._names = TreeSum(), TreeSum(), tuple[str, ...]()
        self._parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]

    @contextmanager
    def piece(self, *, last: bool) -> Iterator[None]:
        """Yield for the forward and backward pass of one piece; `last` of this process in this step."""
        with nullcontext() if last or self._runtime.reproducible else accumulating(self._wrapped):
            yield
        only = last and not self._gradients and not self._runtime.reproducible
        if only or not self._ordered:
            return
        self._gradients.add(self._flat_gradient())
        for parameter in self._parameters:
            parameter.grad = None

    def backward(self, loss: Tensor, numbers: Mapping[str, Tensor]) -> None:
        """Do the backward pass of a piece.

        Args:
            loss: The piece's part of the loss of the batch, scalar.
            numbers: The piece's part of named scalars, the same names with each piece; nothing flows back from them.
        """
        # The wrapper averages over processes, and the loss of the batch is a sum over them.
        (loss * (self._runtime.num_processes if self._averaged else 1)).backward()
        self._names = tuple(numbers)
        self._numbers.add(torch.stack([number.detach().float() for number in numbers.values()]))

    def finish(self) -> dict[str, Tensor]:
        """Finish the gradients after the last piece, and return the sums of the numbers, the same on every process."""
        numbers = self._numbers.total()
        assert numbers is not None
        gradients = self._gradients.total()
        if gradients is None and self._runtime.num_processes > 1 and not self._averaged:
            gradients = self._flat_gradient()
        if gradients is None:
            numbers = sum_over_processes(numbers)
        else:
            total = sum_over_processes(torch.cat([gradients, numbers]), ordered=self._ordered)
            *parts, numbers = total.split([*(parameter.numel() for parameter in self._parameters), len(numbers)])
            for parameter, part in zip(self._parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)
        return dict(zip(self._names, numbers.unbind(), strict=True))

    def _flat_gradient(self) -> Tensor:
        return torch.cat([_gradient(parameter).reshape(-1) for parameter in self._parameters])


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
