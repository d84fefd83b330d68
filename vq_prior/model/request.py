"""What is asked of a model: classes, numbers and sampling settings, checked before anything is drawn."""

from collections.abc import Sequence
from dataclasses import replace
from operator import index as whole
from typing import Any

from stage2_prior.layout import SequenceLayout
from stage2_prior.sampling import check_sampling
from stage2_prior.sampling_settings import Sampling
from vq_prior.core.errors import UsageError
from vq_prior.core.labels import label_index
from vq_prior.core.training.randomness import MAX_SEED
from vq_prior.model.index import ModelIndex

MAX_IMAGES = 10**9


def class_of_each(
    labels: Sequence[str | int] | str | int | None,
    num_classes: int,
    names: tuple[str, ...],
    *,
    unconditional: bool = False,
) -> list[int]:
    """Return the classes that samples cycle through; `[num_classes]`, the null label, for unconditional samples.

    Args:
        labels: A label or several, as `vq_prior.core.labels.label_index` reads each; None for every class in turn.
        num_classes: Classes of the model.
        names: Their names.
        unconditional: Whether to leave the classes aside; a model without classes always does.

    Raises:
        UsageError: If a label is unknown, or labels are given to an unconditional model or request.
    """
    if unconditional:
        if labels is not None:
            raise UsageError(f"labels cannot go with unconditional, got {labels}; give one of the two")
        return [num_classes]
    if labels is None:
        return list(range(num_classes)) or [num_classes]
    plain: Any = labels.tolist() if hasattr(labels, "tolist") else labels  # of numpy and torch, one or several
    several = hasattr(plain, "__iter__") and not isinstance(plain, (str, bytes))
    wanted = list(plain) if several else [plain]
    wanted = [label.tolist() if hasattr(label, "tolist") else label for label in wanted]
    if not wanted:
        raise UsageError("labels must name at least one class; leave them out for every class in turn")
    for label in wanted:
        if not isinstance(label, (str, int)):
            raise UsageError(f"labels must be names or whole numbers, got {type(label).__name__} {label!r}")
    class_of = {label: label_index(str(label), names, num_classes) for label in dict.fromkeys(wanted)}
    return [class_of[label] for label in wanted]


def check_request(
    index: ModelIndex,
    sampling: Sampling,
    *,
    num_images: int,
    seed: int,
    batch_size: int | None,
    conditioned: bool = False,
) -> None:
    """Raise `UsageError` unless the settings of a request are in range."""
    require_whole("num_images", num_images, 1, MAX_IMAGES)
    require_whole("seed", seed, 0, MAX_SEED)
    if batch_size is not None:
        require_whole("batch_size", batch_size, 1, 65_536, "; leave it out for the default")
    check_sampling(
        SequenceLayout.from_spec(index.spec, len(index.label_names)), conditioned=conditioned, **sampling.words()
    )


def require_whole(name: str, value: Any, low: int, high: int, more: str = "") -> None:
    """Raise `UsageError` unless a value is a whole number in a range, one of numpy or torch too."""
    try:
        fits = low <= whole(value) <= high
    except TypeError:  # None, a float, a text
        raise UsageError(f"{name} must be a whole number between {low} and {high}, got {value!r}{more}") from None
    if not fits:
        raise UsageError(f"{name} must be between {low} and {high}, got {value}{more}")


def require_null_prompt(trained: bool) -> None:
    """Raise `UsageError` unless the null prompt of a prior was trained, which unconditional samples start from."""
    if not trained:
        raise UsageError(
            "unconditional needs a prior trained with label_dropout above 0, this one knows no null prompt; give labels"
        )


def resolve_sampling(index: ModelIndex, wanted: Sampling, *, unconditional: bool = False) -> Sampling:
    """Return sampling settings in which what was not given is the model's own; without a class nothing guides.

    Raises:
        UsageError: If guidance is asked for without a class.
    """
    own = index.sampling
    if not unconditional:
        return wanted.filled(own.temperature, own.guidance_scale)
    if wanted.guidance_scale not in (None, 1):
        raise UsageError(f"guidance_scale must be 1 with unconditional, got {wanted.guidance_scale}; leave it out")
    return replace(wanted, guidance_scale=1.0).filled(own.temperature)
