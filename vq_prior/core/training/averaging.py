"""Weight averaging: the exponential moving average of a module's weights, for evaluation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vq_prior.core.processes.sharding import like


class WeightAverage:
    """The exponential moving average of every floating-point tensor of a module.

    The decay of step s is min(decay, (1 + s) / (10 + s)), a function of the step, so
    that the average holds no counter and early steps are forgotten soon. Integer
    tensors and the names in `copied` are copied, not averaged.
    """

    def __init__(self, module: nn.Module, *, decay: float, copied: tuple[str, ...] = ()) -> None:
        self.decay = decay
        self.copied = copied
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the weights after optimiser step `step` (the first is 1)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averaged, current = [], []
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not name.startswith(self.copied or ("\0",)):
                averaged.append(self.tensors[name])
                current.append(tensor)
            else:
                self.tensors[name].copy_(tensor)
        torch._foreach_lerp_(averaged, current, weight)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over saved tensors; names and shapes must be those of the module."""
        assert tensors.keys() == self.tensors.keys()
        for name, tensor in tensors.items():
            self.tensors[name].copy_(like(tensor, self.tensors[name]))

    @contextmanager
    def swapped_into(self, module: nn.Module) -> Iterator[None]:
        """Give `module` the averaged weights for the length of a block."""
        trained = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        module.load_state_dict(self.tensors)
        try:
            yield
        finally:
            module.load_state_dict(trained)
