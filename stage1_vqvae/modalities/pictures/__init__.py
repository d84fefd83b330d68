"""Pictures: grey or colour, brought to one size."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

from stage1_vqvae.modalities.pictures.settings import COLUMNS, SUFFIXES, PictureSize, Range, holds_pictures
from vq_prior.core.modality import Modality, Signs


def _parts(range: Range | None = None) -> tuple[Any, Any, Any, Any]:
    from stage1_vqvae.modalities.pictures.files import PictureFiles
    from stage1_vqvae.modalities.pictures.quality import PictureQuality
    from stage1_vqvae.modalities.pictures.show import PictureShow
    from stage1_vqvae.modalities.pictures.values import PictureValues

    return PictureFiles(range), PictureValues(range), PictureQuality(range), PictureShow()


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
def pictures_in(range: Range | None) -> Modality:
    """Return pictures whose stored numbers are those of a range, in the units of their source; None is 8 bits."""
    return PICTURES if range is None else replace(PICTURES, parts=partial(_parts, range))
