"""Networks that judge values by their pictures: our own classifier, which needs no download, or one of transformers.

Both see uint8 pixels, as a saved picture holds them, so that what is judged is what is kept.

Letters: B images, C channels, D features, K classes.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from stage1_vqvae.modalities.pictures.classifier import ROWS, Pixels
from stage1_vqvae.modalities.pictures.networks import check_network, files_id, load_network, network_inputs
from stage1_vqvae.modalities.pictures.values import to_unit_range
from vq_prior.core.errors import ArtifactError, in_one_line
from vq_prior.core.processes.fixed_calls import map_rows

NAMES = {"dinov2": "facebook/dinov2-small"}


class Evaluator(Protocol):
    """What compares sets of images."""

    def describe(self) -> dict[str, Any]:
        """Return, as JSON values, what another program would need to use the same one."""
        ...

    def features(self, pixels: Pixels) -> Tensor:
        """Return the features [B, D] float32 of pixels [B, height, width, C] uint8; a row does not see the others."""
        ...


class NamedFeatures:
    """An image model of transformers: the pooled output, or else the first token or the mean of the last grid."""

    def __init__(self, folder: Path, source: str, device: torch.device) -> None:
        """Load it.

        Args:
            folder: Its files.
            source: What the user called it.
            device: Where it runs.

        Raises:
            ArtifactError: If it is missing, asks to run code, or is no image model that transformers knows.
        """
        from transformers import AutoModel
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES as KNOWN

        config, files = check_network(folder, tuple(KNOWN), "model of transformers' own")
        model, self._processor, lacking = load_network(AutoModel, folder, may_lack="pooler")
        if model.main_input_name != "pixel_values":
            raise ArtifactError(f"{folder} is a {config['model_type']}, which takes no images; name an image model")
        self._pooled = not lacking  # a pooler that was not saved would be drawn at random
        self._model: nn.Module = model.to(device)
        self._device, self._source = device, source
        self._id = files_id(folder, files)

    def describe(self) -> dict[str, Any]:
        """Return what it is, JSON values."""
        import transformers

        return {"name": self._source, "files_sha256": self._id, "transformers": transformers.__version__}

    @torch.inference_mode()
    def features(self, pixels: Pixels) -> Tensor:
        """Return the features [B, D] float32 of pixels [B, height, width, C].

        Raises:
            ArtifactError: If it does not take such images.
        """
        images = to_unit_range(torch.from_numpy(np.ascontiguousarray(pixels)))
        try:
            inputs = network_inputs(images, self._processor, getattr(self._model, "config", None))
            features: Tensor = map_rows(lambda part: self._features(part.to(self._device)).float().cpu(), ROWS, inputs)
            return features
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(f"{self._source} does not take these images: {in_one_line(error)}") from error

    def _features(self, inputs: Tensor) -> Tensor:
        output = self._model(pixel_values=inputs)
        pooled = getattr(output, "pooler_output", None)
        if pooled is not None and self._pooled:
            return pooled.flatten(1)
        last: Tensor = output.last_hidden_state
        return last.flatten(2).mean(dim=2) if last.dim() == 4 else last[:, 0]
