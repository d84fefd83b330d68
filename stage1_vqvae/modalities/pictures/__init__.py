"""Pictures: grey or colour, brought to one size."""

from typing import Any

from stage1_vqvae.modalities.pictures.settings import COLUMNS, SUFFIXES, PictureSize, holds_pictures
from vq_prior.core.modality import Modality, Signs


def _parts() -> tuple[Any, Any, Any, Any]:
    from stage1_vqvae.modalities.pictures.files import PictureFiles
    from stage1_vqvae.modalities.pictures.quality import PictureQuality
    from stage1_vqvae.modalities.pictures.show import PictureShow
    from stage1_vqvae.modalities.pictures.values import PictureValues

    return PictureFiles(), PictureValues(), PictureQuality(), PictureShow()


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
