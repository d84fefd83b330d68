"""Loss terms of the codec by name, the weight of each, and their weighted sum."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from stage1_vqvae.settings import LossSettings
from vq_prior.core.errors import UsageError
from vq_prior.core.registry import Registry

# Distances between images and their reconstructions, [B, C, *shape] float32 each -> scalar.
RECONSTRUCTIONS: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry("reconstruction loss")
RECONSTRUCTIONS.add("mse", lambda images, copies: (copies - images).square().mean())
RECONSTRUCTIONS.add("l1", lambda images, copies: (copies - images).abs().mean())


def reconstruction_terms(images: Tensor, reconstruction: Tensor, *, kind: str) -> dict[str, Tensor]:
    """Return {"reconstruction": scalar}: mean squared ("mse") or absolute ("l1") error over all numbers, float32."""
    return {"reconstruction": RECONSTRUCTIONS[kind](images.float(), reconstruction.float())}


def coarse_terms(
    images: Tensor, coarse: Sequence[Tensor], rows: slice | None, *, kind: str, first: int = 0
) -> dict[str, Tensor]:
    """Return {"coarse": scalar}, the mean error of what the first grids make alone; {} where that is not trained.

    Args:
        images: Of a piece of a batch, [B, C, *shape].
        coarse: What the first 1, 2, ... grids make of `rows` of it.
        rows: Every other one, which costs half and teaches as well: those at even places of the batch.
        first: Place of the piece's first image in the batch.
    """
    if rows is None or not coarse:
        return {}
    errors = [RECONSTRUCTIONS[kind](images[rows].float(), made.float()) for made in coarse]
    return {"coarse": torch.stack(errors).mean() * part_of_even(first, len(images))}


def even_rows(first: int, count: int) -> slice:
    """Return the rows of a piece of `count` rows that stand at even places of the batch; its only row, whatever it is.

    >>> even_rows(4, 3), even_rows(3, 3), even_rows(3, 1)
    (slice(0, None, 2), slice(1, None, 2), slice(0, None, 2))
    """
    return slice(first % 2 if count > 1 else 0, None, 2)


def part_of_even(first: int, count: int) -> float:
    """Return what the mean over the `even_rows` of a piece counts, so that pieces add up to the mean over a batch.

    >>> part_of_even(4, 4), part_of_even(3, 1), part_of_even(4, 1)
    (1.0, 0.0, 2.0)
    """
    return 2 * len(range(first + first % 2, first + count, 2)) / count


def weights_of(settings: LossSettings) -> dict[str, float]:
    """Return the weight of each term that the settings give one: that of `commitment` is `commitment_weight`."""
    ending = "_weight"
    named = [field.name for field in fields(settings) if field.name.endswith(ending)]
    weights = {name.removesuffix(ending): getattr(settings, name) for name in named}
    return {name: weight for name, weight in weights.items() if weight is not None}


def weights_for(settings: LossSettings, **declared: Mapping[str, float | None]) -> dict[str, float]:
    """Return the weight of every term of the training loss.

    Args:
        settings: Weights of the terms that have a flag.
        declared: The terms of each part, a quantiser say: name -> weight, or None where the settings have it.

    Raises:
        UsageError: If a term has no weight.
    """
    weights = weights_of(settings)
    for part, terms in declared.items():
        for name, own in terms.items():
            if own is not None:
                weights[name] = own
            elif name not in weights:
                known = ", ".join(weights_of(settings))
                raise UsageError(
                    f"the loss term {name!r} of the {part} has no weight; those with a flag --loss.NAME-weight are "
                    f"{known}, any other needs a number in the {part}'s loss_terms"
                )
    return weights


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the training loss: the sum of all terms, each times the weight of its name."""
    unknown = terms.keys() - weights.keys()
    assert not unknown, f"terms that no part declared in its loss_terms: {sorted(unknown)}"
    return sum((weights[name] * term for name, term in terms.items()), next(iter(terms.values())).new_zeros(()))
