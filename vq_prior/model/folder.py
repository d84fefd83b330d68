"""MODEL: one folder that holds a codec, its prior and what a user needs to draw images."""

import shutil
from pathlib import Path

from stage1_vqvae.codecs import open_codec, takes_shape
from stage2_prior.prior import CausalPrior, load_prior
from vq_prior.core.config import pretty_json
from vq_prior.core.disk.artifacts import (
    new_folder,
    require_replaceable,
    staging_path,
    verify_manifest,
    write_atomic,
)
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.core.identity import require_same_codec
from vq_prior.core.spec import Codec, CodeSpec
from vq_prior.model.card import model_card
from vq_prior.model.index import INDEX, ComponentEntry, ModelIndex, read_index


def index_of(codec: Codec, prior: CausalPrior) -> ModelIndex:
    """Return the index of a MODEL of these two; raises `ArtifactError` unless the prior is of this codec."""
    codec_id = codec.codec_id
    require_same_codec("the prior", prior.codec_id, "the codec", codec_id)
    return ModelIndex(
        format_version=1,
        components={"vqvae": ComponentEntry("vqvae", codec.kind), "prior": ComponentEntry("prior", "causal")},
        spec=codec.spec,
        codec_id=codec_id,
        label_names=prior.label_names,
        sampling=prior.sampling,
    )


def codec_for(codec_folder: Path, spec: CodeSpec) -> Codec:
    """Return the codec in a folder; one whose image size is chosen when it is opened takes that of `spec`."""
    return open_codec(codec_folder, shape=spec.shape if takes_shape(codec_folder) else None)


def assemble(codec_folder: Path, prior_folder: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Join a codec and a prior into the MODEL folder `out` and return it.

    Args:
        codec_folder: A `vqvae` component.
        prior_folder: A `prior` component.
        out: MODEL; an equal one that is there is left as it is.
        overwrite: Whether another MODEL at `out` is replaced.

    Raises:
        ArtifactError: If a component is damaged or the prior was trained on another codec's codes.
        UsageError: If `out` holds something else.
    """
    prior = load_prior(prior_folder)
    codec = codec_for(codec_folder, prior.spec)
    index = index_of(codec, prior)
    require_replaceable(out, INDEX, "MODEL")
    if codec.loaded_from is None:
        # Its folder may hold a whole model beside it, and names no size: what MODEL holds is the tokeniser alone.
        alone = staging_path(out).parent / ".codec-alone"
        try:
            with new_folder(alone) as staging:
                codec.save(staging)
            return _join(alone, prior_folder, out, index, overwrite=overwrite)
        finally:
            shutil.rmtree(alone, ignore_errors=True)
    return _join(codec_folder, prior_folder, out, index, overwrite=overwrite)


def _join(codec_folder: Path, prior_folder: Path, out: Path, index: ModelIndex, *, overwrite: bool) -> Path:
    if (out / INDEX).exists() and not overwrite and not _holds(out, index, codec_folder, prior_folder):
        raise UsageError(f"{out} exists and is another model; choose another --out or pass --overwrite")
    with new_folder(out, manifest=False) as staging:
        for name, source in (("vqvae", codec_folder), ("prior", prior_folder)):
            shutil.copytree(source, staging / name, ignore=shutil.ignore_patterns(".*"))
        write_atomic(staging / INDEX, pretty_json(index))
        write_atomic(staging / "README.md", model_card(staging, index).encode("utf-8"))
    return out


def _holds(out: Path, index: ModelIndex, *components: Path) -> bool:
    """Return whether `out` is the MODEL of these components already."""
    try:
        sealed = [verify_manifest(out / name) for name in ("vqvae", "prior")]
        same = [
            (out / name / "manifest.json").read_bytes() == (source / "manifest.json").read_bytes()
            for name, source in zip(("vqvae", "prior"), components, strict=True)
        ]
        return all(sealed) and all(same) and read_index(out) == index
    except (ArtifactError, OSError):
        return False
