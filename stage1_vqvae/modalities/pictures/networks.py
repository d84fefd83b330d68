"""Image networks of transformers in a folder: which are safe to load, and how our images enter them.

Letters: B images, C channels.
"""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage1_vqvae.modalities.pictures.alpha import on_white
from stage1_vqvae.modalities.pictures.values import to_pixels
from stage1_vqvae.modalities.sheets import to_picture
from vq_prior.core.config import canonical_json, read_json
from vq_prior.core.disk.components import WEIGHTS, check_transformers_config
from vq_prior.core.errors import ArtifactError, in_one_line
from vq_prior.core.identity import file_sha256
from vq_prior.core.processes.packages import broken

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"


def check_network(folder: Path, model_types: Sequence[str], what: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the config of a network in a folder and the names of the files that make it what it is; none is loaded.

    Args:
        folder: Its files.
        model_types: Those of transformers that are allowed.
        what: What it has to be, for a message.

    Raises:
        ArtifactError: If it is missing, of another type, quantised, an adapter, or asks to run code.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    config = read_json(folder / CONFIG)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in model_types or kind == "timm_wrapper":
        raise ArtifactError(f"{folder / CONFIG}: {str(kind)[:60]!r} is no {what}")
    check_transformers_config(folder / CONFIG, model_types=(kind,))
    if "quantization_config" in config or (folder / "adapter_config.json").exists():
        raise ArtifactError(f"{folder} is quantised or an adapter; save it whole, as float32")
    if not (folder / WEIGHTS).is_file():
        raise ArtifactError(f"{folder} has no {WEIGHTS}; save it as one safetensors file")
    if not (folder / PROCESSOR).is_file():
        return config, (CONFIG, WEIGHTS)
    processor = read_json(folder / PROCESSOR)
    if not isinstance(processor, dict) or "auto_map" in processor:
        raise ArtifactError(f"{folder / PROCESSOR} must be an object that asks to run no code (auto_map)")
    return config, (CONFIG, WEIGHTS, PROCESSOR)


def load_network(auto: Any, folder: Path, *, may_lack: str | None = None) -> tuple[nn.Module, Any, list[str]]:
    """Return a network in eval mode, its image processor or None, and the names of the weights that it may lack.

    Args:
        auto: The class of transformers that finds its architecture.
        folder: One that `check_network` let through.
        may_lack: Word in the names of weights that need not be there; None if all are needed.

    Raises:
        ArtifactError: If it cannot be loaded, or its weights are missing or do not fit.
    """
    from transformers import AutoImageProcessor

    options: dict[str, Any] = {"local_files_only": True}
    weights = options | {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    processor = None
    try:
        model, loading = auto.from_pretrained(str(folder), **weights)
        if (folder / PROCESSOR).is_file():
            processor = AutoImageProcessor.from_pretrained(str(folder), backend="pil", **options)
    except Exception as error:  # transformers raises many kinds
        raise broken(error) or ArtifactError(f"{folder} cannot be loaded: {in_one_line(error)}") from error
    lacking = [str(name) for key in ("missing_keys", "mismatched_keys") for name in loading[key]]
    spared = [name for name in lacking if may_lack is not None and may_lack in name]
    if needed := sorted(set(lacking) - set(spared)):
        raise ArtifactError(f"{folder}: the weights lack {needed[0]}, or have it in another shape")
    return model.eval(), processor, spared


def files_id(folder: Path, names: Sequence[str]) -> str:
    """Return the sha256 over the content of some files of a folder."""
    return sha256(canonical_json({name: file_sha256(folder / name) for name in names})).hexdigest()


def network_inputs(images: Tensor, processor: Any, config: Any) -> Tensor:
    """Return images [B, C, height, width] in [-1, 1] as a model of transformers takes them.

    Args:
        images: The images; those with alpha enter laid over white.
        processor: Its image processor; None where it has none: images enter in [-1, 1] then, grey repeated over its
            channels, at its `image_size` if it has one.
        config: Its config.
    """
    channels, images = getattr(config, "num_channels", 3), on_white(images)
    if processor is not None:
        pictures = [to_picture(pixels) for pixels in to_pixels(images)]
        pictures = [picture.convert("L" if channels == 1 else "RGB") for picture in pictures]
        return processor(pictures, return_tensors="pt")["pixel_values"]
    images = images.float().cpu()
    if images.shape[1] != channels:
        images = images.mean(dim=1, keepdim=True).expand(-1, channels, -1, -1)
    size = getattr(config, "image_size", None)
    if size is None:
        return images.contiguous()
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)
