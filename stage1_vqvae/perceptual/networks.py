"""Features of image models that others trained: of transformers by folder or Hub id, and LPIPS.

Letters: B batch, C channels, D features.
"""

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stage1_vqvae.modalities.pictures.networks import check_network, files_id, load_network
from stage1_vqvae.modalities.pictures.quality import perceptual_distance
from stage1_vqvae.perceptual.contract import Making, Perceptual
from vq_prior.core.errors import ArtifactError, UsageError, in_one_line
from vq_prior.core.hub.repository import local

MAPS = 4  # of a network's hidden states, evenly spaced, the last one included


def _require_pictures(making: Making) -> None:
    if len(making.spec.shape) != 2 or making.spec.channels not in (1, 3):
        raise UsageError(
            f"--loss.perceptual {making.name} is for grey and colour pictures, got values of "
            f"{making.spec.channels} channels and {len(making.spec.shape)} axes; take own, turns or random"
        )


class NetworkFeatures(Perceptual):
    """Squared differences of the hidden states of an image model of transformers, each of length 1 over its features
    (after Zhang et al. 2018, "The unreasonable effectiveness of deep features as a perceptual metric", eq. 1).
    """

    weight: ClassVar[float] = 1.0

    def __init__(self, making: Making) -> None:
        """Load it.

        Raises:
            UsageError: If the data are no pictures.
            ArtifactError: If it is missing, asks to run code, or is no image model with hidden states.
        """
        from transformers import AutoModel
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES as KNOWN

        super().__init__(making)
        _require_pictures(making)
        with local(making.name, say=making.say) as folder:
            _, files = check_network(folder, tuple(KNOWN), "model of transformers' own")
            model, processor, _ = load_network(AutoModel, folder, may_lack="pooler")
            self._files = files_id(folder, files)
        if model.main_input_name != "pixel_values":
            raise ArtifactError(f"--loss.perceptual {making.name} takes no images; name an image model")
        self.model: nn.Module = model
        self._size = getattr(model.config, "image_size", None)
        self._channels = getattr(model.config, "num_channels", 3)
        for name, otherwise in (("mean", 0.5), ("std", 0.5)):  # without a processor values enter as they are
            value = getattr(processor, f"image_{name}", None)
            self.register_buffer(
                f"_{name}", torch.as_tensor(np.broadcast_to(value or otherwise, self._channels).copy())
            )
        self._check(making)

    @torch.no_grad()
    def _check(self, making: Making) -> None:
        values = torch.zeros(1, making.spec.channels, *making.spec.shape)
        try:
            self(values, values)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ArtifactError(
                f"--loss.perceptual {making.name} does not take these pictures: {in_one_line(error)}"
            ) from error

    def inputs(self) -> dict[str, Any]:
        """Return the hash of its files."""
        return {"perceptual": self._files}

    def maps(self, images: Tensor) -> list[Tensor]:
        """Return hidden states of images [B, C, height, width] in [-1, 1], [B, D, places] each, of length 1 over D."""
        if images.shape[1] != self._channels:
            images = images.mean(dim=1, keepdim=True).expand(-1, self._channels, -1, -1)
        if self._size is not None:
            images = F.interpolate(images, size=self._size, mode="bilinear", antialias=True)
        mean, std = (getattr(self, name).to(images.dtype).reshape(1, -1, 1, 1) for name in ("_mean", "_std"))
        output = self.model(pixel_values=((images + 1) / 2 - mean) / std, output_hidden_states=True)
        states = getattr(output, "hidden_states", None)
        if not states:
            raise ValueError("it tells no hidden states")
        chosen = [states[-1 - (len(states) - 1) * number // MAPS] for number in range(min(MAPS, len(states)))]
        flat = [state.flatten(2) if state.dim() == 4 else state.transpose(1, 2) for state in chosen]
        return [F.normalize(each.float(), dim=1) for each in flat]

    def forward(self, images: Tensor, copies: Tensor) -> Tensor:
        """Return the distance, the mean over places and hidden states."""
        with torch.no_grad():
            wanted = self.maps(images)
        pairs = list(zip(wanted, self.maps(copies), strict=True))
        return torch.stack([(have - want).square().sum(dim=1).mean() for want, have in pairs]).mean()


class Lpips(Perceptual):
    """LPIPS (Zhang et al. 2018) of `lpips-alex`, `lpips-vgg` or `lpips-squeeze`, whose weights torchvision brings."""

    weight: ClassVar[float] = 1.0

    def __init__(self, making: Making) -> None:
        """Load it; raises `UsageError` or `EnvironmentFault`."""
        super().__init__(making)
        _require_pictures(making)
        network = making.name.removeprefix("lpips-")
        if network not in ("alex", "vgg", "squeeze"):
            raise UsageError(f"--loss.perceptual {making.name} must be lpips-alex, lpips-vgg or lpips-squeeze")
        self.network: nn.Module = perceptual_distance(network).net

    def forward(self, images: Tensor, copies: Tensor) -> Tensor:
        """Return the mean distance."""
        pair = (x.expand(-1, 3, -1, -1).clamp(-1, 1) for x in (images, copies))
        distance: Tensor = self.network(*pair)
        return distance.mean()
