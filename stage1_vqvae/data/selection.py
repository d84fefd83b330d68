"""Which rows of DATA are taken, and which classes are left with nothing to train on."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stage1_vqvae.data.splits import MOST_NAMED
from vq_prior.core.errors import UsageError
from vq_prior.core.labels import label_index, split_labels
from vq_prior.core.training.randomness import keyed_generator

Numbers = NDArray[np.int64]


def chosen_classes(wanted: str, names: tuple[str, ...], source: str) -> Numbers:
    """Return the classes that --classes names, ascending.

    Raises:
        UsageError: If the data has none of that name, or no classes.
    """
    if not names:
        raise UsageError(f"--classes {wanted} needs classes, and {source} has no labels; leave it out")
    try:
        return np.unique([label_index(label, names, len(names)) for label in split_labels(wanted, names)])
    except UsageError as error:
        raise UsageError(f"--classes: {str(error).replace('for this model', f'for {source}')}") from error


def some_rows(rows: Numbers, held_out: Numbers, most: int) -> Numbers:
    """Return at most so many of the rows, ascending, drawn from all of them; about one in 20 is a held-out one.

    More rows hold fewer, and whoever asks again gets the same.

    Args:
        rows: Ascending.
        held_out: Those that are held out, among others.
        most: At least 2.
    """
    if len(rows) <= most:
        return rows
    inside = np.isin(rows, held_out)
    drawn = keyed_generator(0, 0, "some images").permutation(len(rows))
    parts = drawn[inside[drawn]], drawn[~inside[drawn]]
    count = min(len(parts[0]), max(1, most // 20)) if inside.any() and not inside.all() else 0
    if not count:
        return rows[np.sort(drawn[:most])]
    return rows[np.sort(np.concatenate([parts[0][:count], parts[1][: most - count]]))]


def without_rows(names: Sequence[str], train: Numbers, held_out: Numbers, empty: Sequence[str] = ()) -> list[str]:
    """Return what to say of classes that no row to train on shows, by name, the first ten.

    Args:
        names: Of all classes.
        train: Class of each row to train on.
        held_out: Class of each held-out row.
        empty: Folders that would be classes, and hold no rows.
    """
    trained, seen = (np.bincount(labels, minlength=len(names)) > 0 for labels in (train, held_out))
    lost = {name: "held out" if seen[n] else "none at all" for n, name in enumerate(names) if not trained[n]}
    lost |= dict.fromkeys(empty, "an empty folder, no class")
    first: Mapping[str, str] = dict(list(lost.items())[:MOST_NAMED])
    listed = ", ".join(f"{name} ({why})" for name, why in first.items())
    more = f", ... ({len(lost)} in all)" if len(lost) > MOST_NAMED else ""
    return [f"classes without images to train on: {listed}{more}"] if lost else []
