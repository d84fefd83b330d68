"""The root `config.json` of a MODEL: an index of its parts, and what kind of artefact a folder is.

What an index says must agree with the components, each of which is sealed by its own manifest.
"""

from dataclasses import dataclass
from pathlib import Path

from stage2_prior.folder import SamplingDefaults
from vq_prior.core.config import from_json, read_json
from vq_prior.core.disk.components import WEIGHTS
from vq_prior.core.errors import ArtifactError
from vq_prior.core.spec import CodeSpec

INDEX = "config.json"


@dataclass(frozen=True)
class ComponentEntry:
    """Where a component lies within MODEL and what it is."""

    folder: str
    kind: str


@dataclass(frozen=True)
class ModelIndex:
    """The root `config.json` of a MODEL."""

    format_version: int
    components: dict[str, ComponentEntry]
    spec: CodeSpec
    codec_id: str
    label_names: tuple[str, ...]
    sampling: SamplingDefaults


def read_index(model: Path) -> ModelIndex:
    """Return the index of a MODEL folder.

    Raises:
        ArtifactError: If there is none, or it is not one that this version reads.
    """
    if not model.is_dir():
        raise ArtifactError(f"{model} is not a folder" if model.exists() else f"{model} does not exist")
    if not (model / INDEX).exists():
        inside = (model / "model" / INDEX).exists()
        advice = f"did you mean {model / 'model'}?" if inside else "`vq-prior assemble` makes one"
        raise ArtifactError(f"{model} is not a MODEL: it has no {INDEX}; {advice}")
    index = from_json(ModelIndex, read_json(model / INDEX), str(model / INDEX))
    if index.format_version != 1:
        raise ArtifactError(f"{model / INDEX} has format version {index.format_version}; this version reads 1")
    for name in ("vqvae", "prior"):
        if index.components.get(name) is None or index.components[name].folder != name:
            raise ArtifactError(f"{model / INDEX}: components must hold {name} in the folder {name}")
    return index


def kind_of(folder: Path) -> str:
    """Return what a folder holds: "model", "vqvae" or "prior".

    Raises:
        ArtifactError: If it is none of them.
    """
    if (folder / "model" / INDEX).is_file() and not (folder / INDEX).exists():
        raise ArtifactError(f"{folder} is a RUN; did you mean {folder / 'model'}?")
    if all((folder / name).is_file() for name in (INDEX, f"vqvae/{WEIGHTS}", f"prior/{WEIGHTS}")):
        return "model"
    if (folder / WEIGHTS).is_file():
        return "prior" if (folder / "prior_config.json").is_file() else "vqvae"
    read_index(folder)  # says what is wrong with it
    raise ArtifactError(f"{folder} is neither a MODEL nor a codec or prior: a part of it is missing")
