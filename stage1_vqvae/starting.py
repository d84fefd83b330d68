"""A training that starts from another codec's weights: same network, same codes, new data."""

from dataclasses import fields, replace
from typing import Any

from stage1_vqvae.codecs import open_own_codec
from stage1_vqvae.modalities import own_settings, with_own_settings
from stage1_vqvae.model import VQVAE
from stage1_vqvae.settings import ModelSettings, TrainVQVAE
from vq_prior.core.config import to_json
from vq_prior.core.errors import UsageError
from vq_prior.core.identity import content_id
from vq_prior.core.processes.runtime import full_state
from vq_prior.core.settings import given_names, note_given

KEPT = ("name", "num_codes", "code_dim", "distance")  # of the quantiser; how it learns may change


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
    for name in KEPT:
        _require_same("quantizer", name, getattr(settings.quantizer, name), getattr(theirs.quantizer, name), given)
    quantizer = {
        each.name: getattr(theirs.quantizer, each.name)
        for each in fields(theirs.quantizer)
        if not each.name.startswith("_") and f"quantizer.{each.name}" not in given
    }
    modality, form = base.modality, base.transform
    if settings.modality not in (None, modality.name):
        raise UsageError(f"--modality must be {modality.name}, which the codec of --from is for")
    ours, own = own_settings(modality, settings), modality.values.settings_of(form)
    if ours is not None and own is not None:
        asked = replace(own, **{name: value for name, value in vars(ours).items() if value is not None})
        wanted = modality.values.transform(asked, None, channels=theirs.channels, device_type="cpu")
        if wanted.describe() != form.describe():
            raise UsageError(
                f"--from is a codec of {to_json(form.describe())}, and the flags ask for {to_json(wanted.describe())}; "
                "leave them out"
            )
    settings = replace(
        settings, model=replace(settings.model, **model), quantizer=replace(settings.quantizer, **quantizer)
    )
    return note_given(with_own_settings(settings, modality, own), given)


def _require_same(part: str, name: str, ours: Any, theirs: Any, given: frozenset[str]) -> None:
    if f"{part}.{name}" in given and ours != theirs:
        flag = f"--{part}.{name.replace('_', '-')}"
        raise UsageError(f"{flag} {ours} cannot go with --from, whose codec has {theirs}; leave it out")


def take_weights(model: VQVAE, base: VQVAE | None) -> list[str]:
    """Give a new codec the weights and the codebook of the base, and return what to say of it.

    Raises:
        UsageError: If they do not fit, since the quantiser was asked to learn in another way.
    """
    if base is None:
        return []
    if model.preprocessing != base.preprocessing:
        raise UsageError(
            f"the codec of --from is for {base.preprocessing}, these data and flags are {model.preprocessing}"
        )
    try:
        model.load_state_dict(base.state_dict(), strict=True)
    except RuntimeError as error:
        raise UsageError(
            f"the codec of --from does not fit these settings of the quantiser; leave them out ({error})"
        ) from error
    return [f"starts from the weights and the codes of codec {base.codec_id[:12]}"]


def base_id(base: VQVAE) -> str:
    """Return a sha256 over a codec's architecture, preprocessing and every weight."""
    return content_id([to_json(base.architecture), base.preprocessing], full_state(base))
