"""Pictures: grey or colour, with alpha or without, brought to one size."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

from stage1_vqvae.modalities.pictures.settings import COLUMNS, SUFFIXES, PictureSize, Range, holds_pictures
from vq_prior.core.modality import Modality, Signs


def _parts(range: Range | None = None, alpha: bool = False) -> tuple[Any, Any, Any, Any]:
    from stage1_vqvae.modalities.pictures.files import PictureFiles
    from stage1_vqvae.modalities.pictures.quality import PictureQuality
    from stage1_vqvae.modalities.pictures.show import PictureShow
    from stage1_vqvae.modalities.pictures.values import PictureValues

    return PictureFiles(range), PictureValues(range, alpha=alpha), PictureQuality(range, alpha=alpha), PictureShow()


PICTURES = Modality(
    name="pictures",
    rank=2,
    signs=Signs(
        suffixes=SUFFIXES,
        column="image",
        columns=COLUMNS,
        feature="Image",
        arrays=holds_pictures,
        settings=PictureSize,
        flat=True,
    ),
    parts=_parts,
)


@cache
def pictures_in(range: Range | None, *, alpha: bool = False) -> Modality:
    """Return pictures whose stored numbers are those of a range, in the units of their source, or that have alpha.

    Args:
        range: Of pictures of more than 8 bits; None is 8 bits.
        alpha: Whether the last channel is alpha.
    """
    return replace(PICTURES, parts=partial(_parts, range, alpha)) if range is not None or alpha else PICTURES
