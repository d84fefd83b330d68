"""Levels that are given to a draw: of the held-out rows of a code store, one row a sample, over and over."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stage2_prior.layout import SequenceLayout
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.identity import require_same_codec
from vq_prior.core.labels import label_index
from vq_prior.model.index import ModelIndex


@dataclass(frozen=True)
class GivenCodes:
    """The held-out rows of a code store whose given levels a prior draws the others for.

    Attributes:
        store: The rows, n of them.
    """

    store: CodeStore

    def tokens(self, layout: SequenceLayout, indices: Sequence[int]) -> Tensor:
        """Return what is given to some samples, [B, T] int64, -1 where one is drawn; sample i has row i mod n.

        Raises:
            ArtifactError: If a code has no token in this vocabulary.
        """
        rows = self.store.rows(np.array([index % len(self.store) for index in indices], dtype=np.int64))
        codes = {n: torch.from_numpy(rows[f"codes.{n}"].astype(np.int64)) for n in layout.given_levels}
        return layout.given_of(codes)

    def classes(self, index: ModelIndex) -> list[int] | None:
        """Return the model's class of each row; None where the rows or the model have none."""
        if not self.store.labelled or not index.label_names:
            return None
        names = self.store.index.label_names
        known = [label_index(name, index.label_names, len(index.label_names)) for name in names]
        return [known[label] for label in self.store.rows(np.arange(len(self.store)))["label"]]


def open_given(path: Path | None, index: ModelIndex, given_levels: tuple[int, ...]) -> GivenCodes | None:
    """Return the codes that a prior needs given, every byte checked; None if it draws all levels.

    Raises:
        UsageError: If the prior needs codes and there are none, or the other way round.
        ArtifactError: If they are missing, damaged, or of another codec.
    """
    if path is None:
        if given_levels:
            levels = ", ".join(map(str, given_levels))
            raise UsageError(f"this prior does not draw level {levels}; give codes that hold it by --given CODES")
        return None
    if not given_levels:
        raise UsageError(f"--given {path} needs a prior with a given level, this one draws every level; leave it out")
    store = CodeStore.open(path, "validation")
    require_same_codec(str(path), store.index.codec.id, "the model", index.codec_id)
    if store.spec != index.spec:
        raise ArtifactError(f"{path} holds codes of {store.spec}, the model is for {index.spec}")
    if not len(store):
        raise ArtifactError(f"{path} has no held-out rows; extract the codes anew with a held-out split")
    store.verify()
    return GivenCodes(store)
