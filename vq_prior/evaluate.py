"""`vq-prior evaluate`: reconstruction of a codec, and the likelihood a prior gives to held-out codes."""

from typing import TYPE_CHECKING, Any

from vq_prior.core.artifacts import write_atomic
from vq_prior.core.config import pretty_json
from vq_prior.core.errors import ArtifactError, UsageError
from vq_prior.settings import Evaluate

if TYPE_CHECKING:
    from stage1_vqvae.codecs import AnyCodec
    from stage1_vqvae.pixels import PixelRows
    from stage1_vqvae.sources import ImageData
    from stage2_prior.prior import CausalPrior

ROWS_AT_ONCE = 256


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
    from stage1_vqvae.codecs import open_codec
    from stage1_vqvae.evaluate import evaluate_codec, transform_of
    from stage1_vqvae.pixels import load_pixels
    from stage1_vqvae.sources import open_data_of
    from vq_prior import __version__
    from vq_prior.core.runtime import start_runtime

    prior = None
    if settings.codec is not None:
        codec = open_codec(settings.codec)
    else:
        from vq_prior.pipeline import VQPriorPipeline

        assert settings.model is not None
        pipeline = VQPriorPipeline.from_pretrained(settings.model)
        codec, prior = pipeline.codec, pipeline.prior
    runtime = start_runtime("fp32")
    print(runtime.describe(), flush=True)
    for note in codec.notes:
        print(note)
    codec.to(runtime.device)  # type: ignore[arg-type]
    data = open_data_of(settings, say=print)
    pixels = load_pixels(data.validation, transform_of(codec), num_workers=settings.num_workers)
    result: dict[str, Any] = {
        "format_version": 1,
        "vq_prior": __version__,
        "data_id": data.data_id,
        "codec_id": codec.codec_id,
        "codec": evaluate_codec(codec, pixels, device=runtime.device),
    }
    if prior is not None:
        result["prior"] = _evaluate_prior(prior.to(runtime.device), codec, data, pixels)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(settings.out, pretty_json(result))
    for part in ("codec", "prior"):
        for name, value in result.get(part, {}).items():
            print(f"{part} {name} {value}")
    print(f"wrote {settings.out}")
    return result


def _evaluate_prior(prior: "CausalPrior", codec: "AnyCodec", data: "ImageData", pixels: "PixelRows") -> dict[str, Any]:
    """Return held-out nats per token and code bits per dimension under the prior.

    Raises:
        ArtifactError: If the classes of the data are not those of the prior.
    """
    import numpy as np
    import torch

    from stage2_prior.baselines import bits_per_dimension
    from vq_prior.core.media import to_unit_range

    num_classes = prior.layout.num_classes
    if num_classes and data.label_names != prior.label_names:
        raise ArtifactError(
            f"the data has the classes {', '.join(data.label_names) or 'none'}, "
            f"the prior {', '.join(prior.label_names)}; evaluate on data of the same classes"
        )
    prior = prior.packed()
    total, count = 0.0, 0
    for first in range(0, len(pixels), ROWS_AT_ONCE):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, len(pixels)))
        images = to_unit_range(torch.from_numpy(pixels.batch(rows))).to(prior.device)
        tokens = prior.layout.to_tokens(codec.encode(images))
        classes = torch.full((len(rows),), prior.layout.null_label)
        if num_classes:
            assert data.validation.labels is not None
            classes = torch.from_numpy(data.validation.labels[rows])
        log_probs = prior.log_probs(tokens, classes.to(prior.device))
        total, count = total - float(log_probs.double().sum()), count + log_probs.numel()
    return {"nats_per_token": total / count, "bits_per_dimension": bits_per_dimension(total / count, prior.spec)}
