"""`vq-prior evaluate`: reconstruction of a codec, and the likelihood a prior gives to held-out codes."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vq_prior.core.artifacts import write_atomic
from vq_prior.core.components import find_component
from vq_prior.core.config import pretty_json
from vq_prior.core.errors import UsageError
from vq_prior.settings import Evaluate

if TYPE_CHECKING:
    from stage1_vqvae.model import VQVAE
    from stage2_prior.prior import CausalPrior


def evaluate(settings: Evaluate) -> dict[str, Any]:
    """Measure on the held-out images, write the numbers to OUT and return them.

    Raises:
        UsageError: Unless exactly one of codec and model is given.
        ArtifactError: If an input is missing or damaged.
    """
    if (settings.codec is None) == (settings.model is None):
        raise UsageError("evaluate needs either --codec or --model")
    if settings.out.is_dir():
        raise UsageError(f"--out must be a file to write, {settings.out} is a folder")
    from stage1_vqvae.evaluate import evaluate_codec, held_out_pixels
    from stage1_vqvae.model import load_codec
    from vq_prior import __version__
    from vq_prior.core.runtime import start_runtime

    if settings.codec is not None:
        codec, prior = load_codec(find_component(settings.codec, "vqvae")), None
    else:
        from vq_prior.pipeline import VQPriorPipeline

        assert settings.model is not None
        pipeline = VQPriorPipeline.from_pretrained(settings.model)
        codec, prior = pipeline.codec, pipeline.prior
    runtime = start_runtime()
    codec.to(runtime.device)  # type: ignore[arg-type]
    workers = settings.num_workers or os.cpu_count() or 1
    data, pixels = held_out_pixels(
        codec,
        settings.data,
        num_workers=workers,
        image_column=settings.image_column,
        label_column=settings.label_column,
    )
    result: dict[str, Any] = {
        "format_version": 1,
        "vq_prior": __version__,
        "data_id": data.data_id,
        "codec_id": codec.codec_id,
        "codec": evaluate_codec(codec, pixels),
    }
    if prior is not None:
        result["prior"] = _evaluate_prior(codec, prior.to(runtime.device), data, pixels)
    if runtime.is_main:
        settings.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(Path(settings.out), pretty_json(result))
        for part in ("codec", "prior"):
            for name, value in result.get(part, {}).items():
                print(f"{part} {name} {value}")
        print(f"wrote {settings.out}")
    return result


def _evaluate_prior(prior: "CausalPrior", codec: "VQVAE", labels: Any, pixels: Any) -> dict[str, Any]:
    """Return the held-out nats per token and bits per dimension under the prior."""
    import numpy as np
    import torch

    from stage2_prior.baselines import bits_per_dimension
    from stage2_prior.train import validation_nats
    from vq_prior.core.media import to_unit_range

    rows = 256
    parts = []
    for first in range(0, len(pixels), rows):
        images = to_unit_range(torch.from_numpy(pixels.batch(np.arange(first, min(first + rows, len(pixels))))))
        parts.append(prior.layout.to_tokens(codec.encode(images.to(codec.device))))
    tokens = torch.cat(parts)
    classes = torch.full((len(tokens),), prior.layout.null_label) if labels is None else torch.from_numpy(labels)
    nats = validation_nats(prior, tokens, classes)
    return {"nats_per_token": nats, "bits_per_dimension": bits_per_dimension(nats, prior.spec)}
