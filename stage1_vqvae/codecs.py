"""Opening any codec: our own, or one of another library, by what its config.json says it is."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stage1_vqvae.architecture import VQVAEConfig
from stage1_vqvae.foreign import (
    CONFIG,
    MAX_CONFIG_BYTES,
    PREPROCESSOR,
    kind_of_config,
    load_foreign,
    require_decoder,
)
from stage1_vqvae.foreign.kinds import KINDS
from stage1_vqvae.foreign.weights import INDICES, MAX_INDEX_BYTES, PICKLES, foreign_files, has_weights
from stage1_vqvae.modalities import read_preprocessing
from stage1_vqvae.modalities.pictures import PICTURES
from stage1_vqvae.model import VQVAE, load_codec
from vq_prior.core.config import read_json
from vq_prior.core.disk.components import check_sealed, find_component
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.hub.client import HubId, fetch, is_hub_id
from vq_prior.core.hub.repository import local
from vq_prior.core.modality import Modality
from vq_prior.core.spec import Codec, by


def find_codec(path: Path) -> Path:
    """Return the folder of a codec given itself, a RUN or a MODEL.

    Raises:
        ArtifactError: If there is none, or its weights are in no safetensors file.
    """
    for candidate in (path / "vqvae", path / "model" / "vqvae", path):
        if has_weights(candidate):
            return candidate
        for name in PICKLES:
            if (candidate / name).is_file():
                raise ArtifactError(
                    f"{candidate} holds its weights as {name}, which can run code and is not read; "
                    "save them as safetensors"
                )
    return find_component(path, "vqvae")


def takes_shape(path: str | Path) -> bool:
    """Return whether the size of a codec's images is chosen when it is opened; that of our own is fixed."""
    return kind_of_config(_config(find_codec(Path(path)))) is not None


def modality_of(path: str | Path) -> Modality:
    """Return what the values of the codec in a folder, a RUN or a MODEL are; its weights are not read.

    Raises:
        ArtifactError: If it is missing, or of a kind that cannot be read here.
    """
    folder = find_codec(Path(path))
    described = read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    if not isinstance(described, dict) or not {"modality", "range", "alpha"} & described.keys():
        return PICTURES
    return read_preprocessing(described, str(folder / PREPROCESSOR))[0]


def _config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG, max_bytes=MAX_CONFIG_BYTES)
    if not isinstance(config, dict):
        raise ArtifactError(f"{folder / CONFIG} must hold an object")
    if "auto_map" in config:
        raise ArtifactError(
            f"{folder / CONFIG} asks to run code (auto_map); remove the key if you trust the weights alone"
        )
    return config


def open_codec(path: str | Path, *, shape: Sequence[int] | None = None, to_decode: bool = True) -> Codec:
    """Return the codec in a folder, a RUN or a MODEL, in eval mode on the host.

    Args:
        path: Where it is.
        shape: Height and width of the images of a codec of another library; None takes what the folder names.
        to_decode: Whether codes are to become images, which not every kind can do.

    Raises:
        ArtifactError: If it is missing, damaged, of an unknown kind, or its weights do not fit its config.
        UsageError: If the image size does not fit, or a kind that cannot decode is asked to.
        EnvironmentFault: If the library of its kind is not installed.
    """
    with local(path, say=print) as folder:
        complete_codec(path, folder)
        return _open_folder(find_codec(folder), shape, to_decode)


def complete_codec(path: str | Path, folder: Path) -> None:
    """Fetch the shards that hold the tokeniser of a whole model on the Hub, beside what was fetched into `folder`."""
    if is_hub_id(path) and any((folder / name).is_file() for name in INDICES):
        index = next(read_json(folder / n, max_bytes=MAX_INDEX_BYTES) for n in INDICES if (folder / n).is_file())
        names = foreign_files(_config(folder), index if isinstance(index, dict) else {})
        wanted = re.compile("|".join(map(re.escape, names)))
        fetch(HubId(HubId.parse(str(path)).name, folder.name), wanted=wanted)


def _open_folder(folder: Path, shape: Sequence[int] | None, to_decode: bool) -> Codec:
    try:
        config = _config(folder)
    except ArtifactError:
        check_sealed(folder)  # a damaged file is called that
        raise
    if config.get("model_type") == VQVAEConfig.model_type:
        codec = load_codec(folder)
        if shape is not None:
            own = by(codec.spec.shape, "x")
            raise UsageError(f"{folder} is for images of {own}, which is fixed; leave --image-size out")
        return codec
    kind = kind_of_config(config)
    if kind is None:
        named = config.get("model_type", config.get("_class_name"))
        known = [VQVAEConfig.model_type, *KINDS, *(kind.whole for kind in KINDS.values() if kind.whole)]
        raise ArtifactError(
            f"{folder / CONFIG}: model_type (or _class_name) must be one of {', '.join(known)}, got {str(named)[:60]!r}"
        )
    if to_decode:
        require_decoder(kind)
    if shape is not None and len(shape) != 2:
        raise UsageError(f"{folder} is a codec of pictures, not of data of shape {list(shape)}")
    return load_foreign(folder, config, shape=None if shape is None else (shape[0], shape[1]))


def open_own_codec(path: str | Path) -> VQVAE:
    """Return a codec of ours; raises what `open_codec` does, and `UsageError` if it is of another library."""
    codec = open_codec(path, to_decode=False)
    if not isinstance(codec, VQVAE):
        raise UsageError(f"{path} is a codec of another library; only those of train-vqvae can be resized")
    return codec
