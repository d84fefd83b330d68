"""Pictures with alpha: how much each pixel covers is one more channel, the last.

In files and in memory, *stored*, colour is as it is (not multiplied by alpha). Networks see it laid over white, beside
alpha: where nothing is covered it is white whatever it was, so colour under alpha 0 counts in no loss, code or measure.
Without transparency that is the picture as a codec without alpha sees it.

Letters: B batch, C channels: 2 (grey and alpha) or 4 (colour and alpha).
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1_vqvae.modalities.pictures.fitting import fitted

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]
COVERING = ("RGBA", "LA", "PA", "La", "RGBa")  # modes of Pillow with a channel of alpha
DARK, TILES = 208, 8  # of a checkerboard: its darker squares, and how many lie along the shorter side


def is_transparent(picture: Image.Image) -> bool:
    """Return whether an open picture has alpha, in a channel, its palette or as a transparent colour."""
    return picture.mode in COVERING or "transparency" in picture.info


def keeps_alpha(channels: int) -> bool:
    """Return whether values of so many channels have alpha as the last one."""
    return channels in (2, 4)


def straight(picture: Image.Image, channels: int) -> Pixels:
    """Return the pixels of a picture of 8 bits, colour and alpha apart, [height, width, C]; opaque if it has none."""
    with_alpha = picture.convert("RGBA") if is_transparent(picture) else picture.convert("RGB")
    colour = np.asarray(with_alpha.convert("L" if channels == 2 else "RGB"))
    colour = colour.reshape(*colour.shape[:2], channels - 1)
    if with_alpha.mode == "RGB":
        return np.concatenate([colour, np.full_like(colour[..., :1], 255)], axis=2)
    return np.concatenate([colour, np.asarray(with_alpha)[..., 3:]], axis=2)


def resized(pixels: Pixels, shape: tuple[int, int], fit: str, resize: str) -> Pixels:
    """Return pixels [height, width, C] brought to a size, white where they are fully transparent.

    Colour is multiplied by alpha before the filter and divided by it afterwards (Porter and Duff 1984, section 3): what
    is not seen has no weight in what is, and no fringe of it appears.

    Args:
        pixels: As `straight` gives them.
        shape: Height and width wanted.
        fit: As in `fitted`; "pad" puts transparency around them.
        resize: As in `fitted`.
    """
    alpha = pixels[..., -1].astype(np.float32)
    layers = [pixels[..., channel] * alpha for channel in range(pixels.shape[-1] - 1)]

    def brought(layer: NDArray[np.float32]) -> NDArray[Any]:
        return np.asarray(fitted(Image.fromarray(layer), shape, fit, resize=resize, around="constant"))

    covered = brought(alpha)
    weight = np.where(covered > 0, covered, 1)
    colours = [np.rint((brought(layer) / weight).clip(0, 255)).astype(np.uint8) for layer in layers]
    whole = np.stack([*colours, np.rint(covered.clip(0, 255)).astype(np.uint8)], axis=-1)
    whole[..., :-1][whole[..., -1] == 0] = 255
    return whole


def on_white(values: "Tensor") -> "Tensor":
    """Return images without alpha, [B, 1 or 3, height, width], of images in [-1, 1]; they lie over white already."""
    return values[:, :-1] if keeps_alpha(values.shape[1]) else values


def values_of(stored: "Tensor") -> "Tensor":
    """Return images [B, C, height, width] float32 in [-1, 1] of pixels [B, height, width, C] with alpha.

    Opaque pixels are the very numbers that they are without alpha.
    """
    import torch

    pixels = stored.movedim(-1, 1).float()
    colour, alpha = pixels[:, :-1], pixels[:, -1:]
    white = (colour * alpha + 255 * (255 - alpha)).div_(255)  # whole numbers below 2^24 before they are divided
    return torch.cat([white, alpha], dim=1).div_(127.5).sub_(1.0)


def pixels_of(values: "Tensor") -> Pixels:
    """Return pixels [B, height, width, C] with alpha of images in [-1, 1]; values beyond are cut."""
    import torch

    scaled = values.detach().float().add(1.0).mul(127.5)
    alpha = scaled[:, -1:].round().clamp(0, 255)
    colour = 255 - (255 - scaled[:, :-1]) * (255 / alpha.clamp_min(1))
    colour = torch.where(alpha > 0, colour, torch.full_like(colour, 255)).round().clamp(0, 255)
    pixels = torch.cat([colour, alpha], dim=1).to(torch.uint8).movedim(1, -1)
    return pixels.contiguous().cpu().numpy()


def laid_over(pixels: Pixels, ground: Pixels | int) -> Pixels:
    """Return pixels [..., height, width, C] over a ground of as many channels without alpha, rounded."""
    alpha = pixels[..., -1:].astype(np.int32)
    mixed = pixels[..., :-1] * alpha + np.asarray(ground, dtype=np.int32) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def checkerboard(shape: tuple[int, int]) -> Pixels:
    """Return a ground of light and darker squares, [height, width, 1] uint8: what transparency is shown on."""
    tile = max(1, min(shape) // TILES)
    rows, columns = (np.arange(side) // tile for side in shape)
    return np.where((rows[:, None] + columns) % 2, DARK, 255).astype(np.uint8)[..., None]


def share_transparent(values: "Tensor") -> "Tensor":
    """Return the share of each image's pixels whose alpha is below one half, [B], from images [B, C, height, width]."""
    return (values[:, -1] < 0).float().flatten(1).mean(1)
