"""A second network in the training of a codec: what it is, and what the training keeps of it.

A discriminator is one (Goodfellow et al. 2014; Esser et al. 2021, "Taming transformers", section 3.1): it learns to
tell reconstructions from the data, and the codec learns to mislead it. It has its own optimiser, its own sums over
pieces and processes, its own gradient norm, and its own names in checkpoints; it is no part of the codec.
Letters: B batch, C channels.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vq_prior.core.disk.checkpoints import Checkpoint
from vq_prior.core.processes.gradients import StepSums
from vq_prior.core.processes.runtime import Runtime, full_state
from vq_prior.core.spec import CodeSpec
from vq_prior.core.training.optim import adamw, load_optimizer_tensors, optimizer_tensors, set_learning_rate
from vq_prior.core.training.randomness import keyed_generator


class Adversary(nn.Module):
    """The contract of a second network.

    Both passes are means over the rows that they are given, so that pieces of a batch add up to it.

    Attributes:
        name: Of its weights in checkpoints, and the beginning of its optimiser's name and of its numbers in the log.
        loss_terms: Names of the terms of `judged` -> their weights in the codec's loss.
        told: Names of numbers of `forward` that are logged and no part of its loss.
        share: Of the codec's learning rate.
        starts: Share of the steps after which it learns.
        pulls_from: Share of the steps after which the codec learns from it.
        rises: Share of the steps over which its pull rises to the whole.
        pull: None: its terms are part of the loss as they are. A number: at the reconstructions its gradient is brought
            to so many times the length of that of all other terms there.
    """

    name: ClassVar[str] = "adversary"
    loss_terms: ClassVar[dict[str, float | None]]
    told: ClassVar[tuple[str, ...]] = ()
    share: float = 1.0
    starts: float = 0.0
    pulls_from: float = 0.0
    rises: float = 0.0
    pull: float | None = None

    @abstractmethod
    def judged(self, images: Tensor, copies: Tensor) -> dict[str, Tensor]:
        """Return the terms that it adds to the codec's loss, of data and reconstructions [B, C, *shape] each."""

    @abstractmethod
    def forward(self, images: Tensor, copies: Tensor) -> dict[str, Tensor]:
        """Return the terms of its own loss, which is their sum, and what is told; no gradient flows into `copies`."""


MakeAdversary = Callable[[CodeSpec], Adversary]
DECAY = 0.95  # of the running mean of both lengths
MOST = 1e4  # times


class Measured(torch.autograd.Function):
    """What comes in, as it is; the gradient that comes back is measured, and multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float, squared_length: Tensor) -> Tensor:
        """Return `x`; the backward pass adds the squared length of its gradient to `squared_length`, a scalar."""
        ctx.factor, ctx.squared_length = factor, squared_length
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient times the factor."""
        ctx.squared_length.add_(gradient.float().square().sum())
        return gradient * ctx.factor, None, None


class AdversaryTraining:
    """An adversary with its optimiser, in training.

    Attributes:
        network: The adversary.
        balance: Running means of the squared lengths of the gradients of all other terms, and of its own, at the
            reconstructions.
        stopped_at: Step at which it was ended, since what is measured got worse; None if it was not.

    Args:
        make: Returns it, untrained; its weights are a function of the seed.
        spec: Of the codec.
        runtime: This process.
        seed: Of the run.
        learning_rate: Peak of the codec's.
        betas: Of AdamW.
    """

    def __init__(
        self,
        make: MakeAdversary,
        spec: CodeSpec,
        runtime: Runtime,
        *,
        seed: int,
        learning_rate: float,
        betas: tuple[float, float],
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(keyed_generator(seed, 0, "adversary weights").integers(2**63)))
            self.network = make(spec)
        self.balance = (0.0, 0.0)
        self.stopped_at: int | None = None
        self._runtime = runtime
        self._wrapped = runtime.wrap(self.network).train()
        self.optimizer = adamw(self.network.parameters(), learning_rate=learning_rate, weight_decay=0.0, betas=betas)

    @property
    def name(self) -> str:
        """What its weights are called in checkpoints; its optimiser is NAME-adamw there."""
        return self.network.name

    @contextmanager
    def frozen(self) -> Iterator[Adversary]:
        """Yield it for the codec's passes, in which its weights get no gradient."""
        self.network.requires_grad_(False)
        try:
            yield self.network
        finally:
            self.network.requires_grad_(True)

    def passes(self, pieces: list[tuple[Tensor, Tensor, float]], max_norm: float) -> tuple[dict[str, Tensor], Tensor]:
        """Do the passes of its own loss; every weight's gradient is that of the batch, at most `max_norm` long.

        Args:
            pieces: Data, reconstructions without gradient, and the piece's share of the batch.
            max_norm: What the gradient is scaled down to.

        Returns:
            Its terms under names that begin with its own and `NAME_gradient_norm`, and the loss; on every process the
            same.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums = StepSums(self._runtime, self._wrapped)
        for number, (images, copies, share) in enumerate(pieces, 1):
            with sums.piece(last=number == len(pieces)):
                with self._runtime.autocast():
                    terms = self._wrapped(images, copies)
                parts = {name: term.float() * share for name, term in terms.items()}
                sums.backward(self._sum(parts), parts)
        numbers = sums.finish()
        loss = self._sum(numbers)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), max_norm)
        named = {f"{self.name}_{name}": value for name, value in numbers.items()}
        return named | {f"{self.name}_gradient_norm": norm}, loss

    def _sum(self, terms: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([term for name, term in terms.items() if name not in self.network.told]).sum()

    def learns(self, progress: float) -> bool:
        """Return whether it learns when this share of the steps is done."""
        return self.stopped_at is None and progress >= self.network.starts

    def joins(self, progress: float) -> bool:
        """Return whether its terms are part of the codec's loss when this share of the steps is done."""
        return self.stopped_at is None and progress >= self.network.pulls_from

    def starts_to_pull(self, step: int, steps: int) -> bool:
        """Return whether the next step, after `step` of so many, is the first in which its terms count."""
        return self.joins(step / steps) and not self.joins((step - 1) / steps)

    def pulls(self, progress: float) -> float:
        """Return how much of its pull the codec gets when this share of the steps is done, in [0, 1]."""
        if not self.joins(progress):
            return 0.0
        rises = self.network.rises
        return 1.0 if not rises else min(1.0, (progress - self.network.pulls_from) / rises)

    def factor(self, progress: float) -> float:
        """Return what its gradient at the reconstructions is multiplied by: 1, or so that it has the length wanted."""
        if self.network.pull is None:
            return 1.0
        others, own = self.balance
        return self.pulls(progress) * self.network.pull * min(MOST, (others / own) ** 0.5 if own > 0 else 0.0)

    def note_lengths(self, others: float, own: float) -> None:
        """Take note of the squared lengths of both gradients of a step; a running mean of them makes the `factor`."""
        if self.balance[1] == 0:
            self.balance = (others, own)
        else:
            before = self.balance
            self.balance = (DECAY * before[0] + (1 - DECAY) * others, DECAY * before[1] + (1 - DECAY) * own)

    def state(self) -> dict[str, Any]:
        """Return what it holds beside tensors, as JSON values."""
        return {"balance": list(self.balance), "stopped_at": self.stopped_at}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave."""
        others, own = state["balance"]
        self.balance, self.stopped_at = (float(others), float(own)), state["stopped_at"]

    def step(self, learning_rate: float) -> None:
        """Take the optimiser step at a share of the codec's learning rate."""
        set_learning_rate(self.optimizer, self.network.share * learning_rate)
        self.optimizer.step()

    def add_to(self, checkpoint: Checkpoint) -> None:
        """Put its weights and its optimiser's state into a checkpoint, under its own names."""
        checkpoint.modules[self.name] = full_state(self.network)
        checkpoint.optimizers[f"{self.name}-adamw"] = optimizer_tensors(self.optimizer, self.network)

    def restore(self, checkpoint: Checkpoint, where: str) -> None:
        """Take its weights and its optimiser's state from a checkpoint; raises `KeyError` if they are not in it."""
        self.network.load_state_dict(checkpoint.modules[self.name], strict=True)
        state = checkpoint.optimizers[f"{self.name}-adamw"]
        load_optimizer_tensors(self.optimizer, self.network, state, where)
