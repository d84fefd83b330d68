"""A training that starts from another codec's weights: same network, same codes, new data; or more levels of codes."""

from dataclasses import fields, replace
from typing import Any

from stage1_vqvae.architecture import Architecture
from stage1_vqvae.codecs import open_own_codec
from stage1_vqvae.modalities import own_settings, with_own_settings
from stage1_vqvae.model import VQVAE
from stage1_vqvae.quantizers.residual import ResidualQuantizer
from stage1_vqvae.settings import ModelSettings, TrainVQVAE
from vq_prior.core.config import to_json
from vq_prior.core.errors import UsageError
from vq_prior.core.identity import content_id
from vq_prior.core.processes.runtime import full_state
from vq_prior.core.settings import given_names, note_given

KEPT = ("name", "num_codes", "level_codes", "code_dim", "distance")  # of the quantiser; how it learns may change


def open_base(settings: TrainVQVAE) -> VQVAE | None:
    """Return the codec that `settings.from_codec` names, None if a training starts from nothing.

    Raises:
        UsageError: If it is of another library, or the training would replace it.
        ArtifactError: If there is none, or it is damaged.
    """
    if settings.from_codec is None:
        return None
    base = open_own_codec(settings.from_codec)
    if base.loaded_from is not None and base.loaded_from.resolve() == (settings.out / "vqvae").resolve():
        raise UsageError(f"--out {settings.out} would replace the codec that --from names; choose another --out")
    return base


def with_base(settings: TrainVQVAE, base: VQVAE | None) -> TrainVQVAE:
    """Return the settings with network, codes and form of values of the base; what was given and differs is refused.

    Raises:
        UsageError: Naming the first flag that asks for something else.
    """
    if base is None:
        return settings
    theirs, given = base.architecture, given_names(settings)
    model: dict[str, Any] = {each.name: getattr(theirs, each.name) for each in fields(ModelSettings)}
    for name, value in model.items():
        _require_same("model", name, getattr(settings.model, name), value, given)
    _require_same(None, "levels", settings.levels, theirs.grids, given)
    for name in KEPT:
        _require_same("quantizer", name, getattr(settings.quantizer, name), getattr(theirs.quantizer, name), given)
    quantizer = {
        each.name: getattr(theirs.quantizer, each.name)
        for each in fields(theirs.quantizer)
        if not each.name.startswith("_") and f"quantizer.{each.name}" not in given
    }
    _check_depth(quantizer.get("depth", settings.quantizer.depth), theirs)
    modality, form = base.modality, base.transform
    if settings.modality not in (None, modality.name):
        raise UsageError(f"--modality must be {modality.name}, which the codec of --from is for")
    ours, own = own_settings(modality, settings), modality.values.settings_of(form)
    if ours is not None and own is not None:
        combined = replace(own, **{name: value for name, value in vars(ours).items() if value is not None})
        wanted = modality.values.transform(combined, None, channels=theirs.channels, device_type="cpu")
        if wanted.describe() != form.describe():
            raise UsageError(
                f"--from is a codec of {to_json(form.describe())}, and the flags ask for {to_json(wanted.describe())}; "
                "leave them out"
            )
    settings = replace(
        settings,
        levels=theirs.grids,
        model=replace(settings.model, **model),
        quantizer=replace(settings.quantizer, **quantizer),
    )
    return note_given(with_own_settings(settings, modality, own), given)


def _check_depth(depth: int, theirs: Architecture) -> None:
    """Raise `UsageError` unless a codec can be made that deep from another one."""
    if depth < theirs.quantizer.depth:
        raise UsageError(
            f"--quantizer.depth must be at least {theirs.quantizer.depth}, that of the codec of --from, got {depth}"
        )
    if depth > theirs.quantizer.depth and theirs.grids > 1:
        raise UsageError(
            f"--quantizer.depth must be {theirs.quantizer.depth} with --from: only a codec of one grid can be made "
            "deeper; leave it out"
        )


def _require_same(part: str | None, name: str, ours: Any, theirs: Any, given: frozenset[str]) -> None:
    whole = f"{part}.{name}" if part else name
    if whole in given and ours != theirs:
        flag = f"--{whole.replace('_', '-')}"
        raise UsageError(f"{flag} {ours} cannot go with --from, whose codec has {theirs}; leave it out")


def take_weights(model: VQVAE, base: VQVAE | None) -> list[str]:
    """Give a new codec the weights and the codebook of the base, and return what to say of it.

    Where it is to have more levels, encoder and codes of those that the base has stay as they are from now on: what
    was encoded keeps its codes, and decoder and new levels are what is trained.

    Raises:
        UsageError: If they do not fit, since the quantiser was asked to learn in another way.
    """
    if base is None:
        return []
    new, old = model.architecture.quantizer.depth, base.architecture.quantizer.depth
    if model.preprocessing != base.preprocessing:
        raise UsageError(
            f"the codec of --from is for {base.preprocessing}, these data and flags are {model.preprocessing}"
        )
    weights = base.state_dict()
    if new > old and isinstance(model.quantizer, ResidualQuantizer):
        if old == 1:
            weights = {_in_level(name): tensor for name, tensor in weights.items()}
        own = model.state_dict()
        weights |= {name: own[name] for name in own.keys() - weights.keys() if model.quantizer.is_behind(name, old)}
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UsageError(
            f"the codec of --from does not fit these settings of the quantiser; leave them out ({error})"
        ) from error
    if new > old:
        model.encoder.requires_grad_(False)
        if isinstance(model.quantizer, ResidualQuantizer):
            model.quantizer.keep(old)
        return [
            f"starts from codec {base.codec_id[:12]}: its encoder and the codes of its {old} level(s) stay; "
            f"trained are the decoder and {new - old} level(s) more"
        ]
    return [f"starts from the weights and the codes of codec {base.codec_id[:12]}"]


def _in_level(name: str) -> str:
    """Return the name of a tensor of a codec of depth 1 in a deeper one."""
    return name.replace("quantizer.", "quantizer.levels.0.", 1) if name.startswith("quantizer.") else name


def base_id(base: VQVAE) -> str:
    """Return a sha256 over a codec's architecture, preprocessing and every weight."""
    return content_id([to_json(base.architecture), base.preprocessing], full_state(base))
