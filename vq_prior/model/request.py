"""What is asked of a model: classes, numbers and sampling settings, checked before anything is drawn."""

from collections.abc import Sequence
from typing import Any

from stage2_prior.layout import SequenceLayout
from stage2_prior.sampling import check_sampling
from vq_prior.core.disk.components import label_index
from vq_prior.core.errors import UsageError
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
        labels: A label or several, by name or by index; None for every class in turn.
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
    given = [labels] if isinstance(labels, (str, int)) else list(labels)
    if not given:
        raise UsageError("labels must name at least one class; leave them out for every class in turn")
    return [label_index(str(label), names, num_classes) for label in given]


def check_request(index: ModelIndex, *, num_images: int, seed: int, batch_size: int | None, **sampling: Any) -> None:
    """Raise `UsageError` unless the settings of a request are in range."""
    if not 1 <= num_images <= MAX_IMAGES:
        raise UsageError(f"num_images must be between 1 and {MAX_IMAGES}, got {num_images}")
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"seed must be between 0 and {MAX_SEED}, got {seed}")
    if batch_size is not None and not 1 <= batch_size <= 65_536:
        raise UsageError(f"batch_size must be between 1 and 65536, got {batch_size}; leave it out for the default")
    check_sampling(SequenceLayout.from_spec(index.spec, len(index.label_names)), **sampling)


def require_null_prompt(trained: bool) -> None:
    """Raise `UsageError` unless the null prompt of a prior was trained, which unconditional samples start from."""
    if not trained:
        raise UsageError(
            "unconditional needs a prior trained with label_dropout above 0, this one knows no null prompt; give labels"
        )


def resolve_sampling(index: ModelIndex, given: dict[str, Any], *, unconditional: bool = False) -> dict[str, Any]:
    """Return sampling settings in which what was not given is the model's own; without a class nothing guides.

    Raises:
        UsageError: If guidance is asked for without a class.
    """
    resolved = dict(given)
    if unconditional:
        if (scale := given.get("guidance_scale")) not in (None, 1):
            raise UsageError(f"guidance_scale must be 1 with unconditional, got {scale}; leave it out")
        resolved["guidance_scale"] = 1.0
    for name in ("temperature", "guidance_scale"):
        if resolved.get(name) is None:
            resolved[name] = getattr(index.sampling, name)
    return resolved
