"""Named recipes: functions that return a command's settings, with their cost and measured result."""

from collections.abc import Callable
from typing import Any

from vq_prior.core.registry import Registry

Recipe = Callable[[], Any]
RECIPES: dict[str, Registry[Recipe]] = {
    "train-vqvae": Registry("recipe of train-vqvae"),
    "train-prior": Registry("recipe of train-prior"),
}


def find_recipe(command: str, name: str) -> Any:
    """Return the settings of a recipe; raises `UsageError` that lists what exists."""
    from vq_prior.core.errors import UsageError

    if command not in RECIPES:
        raise UsageError(f"{command} has no recipes; leave out --recipe")
    return RECIPES[command][name]()
