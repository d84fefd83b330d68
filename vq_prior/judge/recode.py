"""`vq-prior verify CODES --codec CODEC`: whether a code store holds what the codec gives its images."""

import os

import numpy as np

from stage1_vqvae.codecs import open_codec, takes_shape
from stage1_vqvae.data.loading import load_rows
from stage1_vqvae.data.rows import DataRows
from stage1_vqvae.data.sources import Data, columns_of, open_data, said_of_data
from vq_prior.core.disk.code_store import INDEX, CodeIndex, CodeStore
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.identity import require_same_codec
from vq_prior.core.modality import Modality
from vq_prior.core.processes.runtime import start_runtime
from vq_prior.core.spec import Codec
from vq_prior.model.inputs import fetch_codec
from vq_prior.settings import Verify

SAMPLE = 256  # rows of each split that are encoded again
AGREEMENT = 0.999  # of codes: what another device may round to another neighbour


def recode(settings: Verify) -> str:
    """Encode a sample of the images of a code store again and return a line on how many codes agree.

    Raises:
        UsageError: If PATH is no code store, or nobody says where the images are.
        ArtifactError: If codec or data are others than those of the store, or more than one code in a thousand differs.
    """
    assert settings.codec is not None
    path = settings.path
    if not (path / INDEX).is_file():
        raise UsageError(f"--codec goes with a code store, and {path} is none; leave --codec out")
    stores = [CodeStore.open(path, split) for split in ("train", "validation")]
    index = stores[0].index
    folder = fetch_codec(settings.codec)
    size = index.spec.shape if takes_shape(folder) else None
    codec = open_codec(folder, shape=size, to_decode=False)
    require_same_codec(str(path), index.codec.id, "--codec", codec.codec_id)
    data = _data_of(index, codec.modality, settings)
    codec.to(start_runtime("fp32").device)
    splits = zip(stores, (data.train, data.validation), strict=True)
    same, codes, rows = np.sum([_compared(codec, *split) for split in splits], axis=0)
    if same < AGREEMENT * codes:
        raise ArtifactError(
            f"{path}: {codes - same} of {codes} codes of {rows} images are not those that {settings.codec} gives them; "
            "extract the codes anew"
        )
    return f"{path}: {rows} images encoded again, {same} of {codes} codes agree"


def _data_of(index: CodeIndex, modality: Modality, settings: Verify) -> Data:
    """Return the images that a store was extracted from."""
    source = settings.data or index.data.source
    if settings.data is None and source != "digits" and not os.path.exists(source):
        raise UsageError(f"{settings.path} holds codes of {source}, which is not here; say where by --data")
    data = open_data(
        source,
        modality=modality,
        columns=columns_of(settings),
        image_column=settings.image_column,
        num_workers=settings.num_workers,
        **said_of_data(settings),
    )
    if data.data_id != index.data.id:
        raise ArtifactError(
            f"{source} is not the data of {settings.path}: {data.data_id[:12]} instead of {index.data.id[:12]}; "
            "give the images that the codes were extracted from"
        )
    return data


def _compared(codec: Codec, store: CodeStore, images: DataRows) -> tuple[int, int, int]:
    """Return how many codes of a sample agree, of how many, and of how many rows; views are left out."""
    place = {int(number): row for row, number in enumerate(images.source_index)}
    held = store.rows(np.unique(np.linspace(0, max(0, len(store) - 1), min(SAMPLE, len(store))).astype(np.int64)))
    plain = np.flatnonzero(held["view"] == 0)
    if not len(plain):
        return 0, 0, 0
    rows = np.array([place[int(number)] for number in held["source_index"][plain]], dtype=np.int64)
    loaded = load_rows(images.subset(rows), codec.modality, codec.transform, num_workers=1)
    own = codec.encode(loaded.batch(range(len(rows))))
    stored = [held[f"codes.{number}"][plain].astype(np.int64) for number in range(len(own))]
    same = sum(int((level == mine.cpu().numpy()).sum()) for level, mine in zip(stored, own, strict=True))
    return same, sum(level.size for level in stored), len(plain)
