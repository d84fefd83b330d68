"""Image tokenisers that live in other libraries: one entry a class, with all that is particular to it.

An entry names no path: what is imported stands here, never in data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from vq_prior.core.errors import EnvironmentFault
from vq_prior.core.processes.packages import broken, leave_out_if_broken

MAX_BLOCKS, MAX_STAGES, MAX_FRAMES = 16, 8, 64
DIFFUSERS_STAGES = ("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "UpDecoderBlock2D", "AttnUpDecoderBlock2D")


@dataclass(frozen=True)
class Kind:
    """One class of tokeniser.

    Attributes:
        name: What its config.json calls it: `model_type` of transformers, `_class_name` of diffusers.
        library: Where its class is.
        class_name: The class.
        config_name: The class of its config; None if the class takes the entries itself.
        whole: `model_type` of the model that holds it as `vqmodel`, its config under `vq_config`.
        encoder_keys: Entries of the config that codes may depend on.
        decoder_keys: The other entries that describe it.
        stages_key: Entry with one item a resolution; each but the last halves the image.
        codes_key: Entry with the number of codes.
        size: Side of the images its config names, given the entries and the downsampling; None if it names none.
        codes: Codes of normalised images [B, C, height, width], in any shape of B * cells integers, raster order.
        images: Images in the same scale of codes [B, *grid]; None if the class has no decoder.
        frames_key: Entry with the number of copies of a picture that a video tokeniser sees.
    """

    name: str
    library: str
    class_name: str
    config_name: str | None
    whole: str | None
    encoder_keys: tuple[str, ...]
    decoder_keys: tuple[str, ...]
    stages_key: str
    codes_key: str
    size: Callable[[dict[str, Any], int], Any]
    codes: Callable[[Any, Tensor], Tensor]
    images: Callable[[Any, Tensor], Tensor] | None
    frames_key: str | None = None

    @property
    def type_key(self) -> str:
        """The entry of config.json that holds the name."""
        return "_class_name" if self.library == "diffusers" else "model_type"

    def build(self, entries: dict[str, Any]) -> nn.Module:
        """Return the module that config entries describe, with whatever weights its library draws.

        Raises:
            EnvironmentFault: If the library is missing or too old.
        """
        leave_out_if_broken()
        try:
            library = import_module(self.library)
            made: Any = getattr(library, self.class_name)
            config: Any = self.config_name and getattr(library, self.config_name)
        except Exception as error:  # absent, too old, or there and broken
            advice = 'pip install "vq-prior[foreign]"' if self.library == "diffusers" else "pip install -U transformers"
            needed = f"{self.class_name} of {self.library}"
            absent = EnvironmentFault(f"a codec of kind {self.name} needs {needed}, which is missing; {advice}")
            raise broken(error) or absent from error
        return made(config(**entries)) if config else made(**entries)


def _vqgan_codes(module: Any, pixels: Tensor) -> Tensor:
    return module.encode(pixels, return_dict=True).image_tokens


def _janus_images(module: Any, codes: Tensor) -> Tensor:
    module.quantize.quant_state_dims = list(codes.shape[1:])  # its config can only say a square
    return module.decode(codes.flatten(1))


def _emu3_codes(module: Any, pixels: Tensor) -> Tensor:
    # What its `encode` does, which takes the rows apart one by one: in an export that would fix their number.
    frames = pixels.unsqueeze(1).repeat(1, module.config.temporal_downsample_factor, 1, 1, 1)
    latents = module.quant_conv(module.encoder(frames).transpose(1, 2)).transpose(1, 2)
    return module.quantize(latents).squeeze(1)


def _emu3_images(module: Any, codes: Tensor) -> Tensor:
    # What its `decode` does, of the one frame that is the picture. It parts latents and vectors by `chunk`, which would
    # fix the number of rows in an export.
    decoder, rows = module.decoder, codes.shape[0]
    vectors = module.quantize.embedding(codes).permute(0, 3, 1, 2)[:, :, None].contiguous()
    frames = torch.cat((module.post_quant_conv(vectors), vectors))
    for layer in decoder.time_res_stack:
        frames = layer(frames)
    for layer in decoder.time_conv:
        frames = _swish(layer(frames))
    latents, vectors = (half.contiguous() for half in (frames[:rows, :, 0], frames[rows:, :, 0]))
    hidden = decoder.up_block(decoder.middle_block(decoder.conv_in(latents), vectors), vectors)
    return decoder.conv_out(_swish(decoder.norm_out(hidden, vectors)))


def _swish(hidden: Tensor) -> Tensor:
    return hidden * torch.sigmoid(hidden)


def _vqmodel_codes(module: Any, pixels: Tensor) -> Tensor:
    return module.quantize(module.encode(pixels).latents)[2][2]


def _vqmodel_images(module: Any, codes: Tensor) -> Tensor:
    vectors = module.quantize.embedding(codes).movedim(-1, 1).contiguous()
    spatial = module.config["norm_type"] == "spatial"
    return module.decoder(module.post_quant_conv(vectors), vectors if spatial else None)


_VQGAN_KEYS = ("embed_dim", "latent_channels", "double_latent", "in_channels", "base_channels", "channel_multiplier")

KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            name="chameleon_vqgan",
            library="transformers",
            class_name="ChameleonVQVAE",
            config_name="ChameleonVQVAEConfig",
            whole="chameleon",
            encoder_keys=(
                *_VQGAN_KEYS,
                *("num_embeddings", "num_res_blocks", "resolution", "attn_resolutions", "dropout", "attn_type"),
            ),
            decoder_keys=(),
            stages_key="channel_multiplier",
            codes_key="num_embeddings",
            size=lambda entries, _: entries["resolution"],
            codes=_vqgan_codes,
            images=None,
        ),
        Kind(
            name="janus_vqgan",
            library="transformers",
            class_name="JanusVQVAE",
            config_name="JanusVQVAEConfig",
            whole="janus",
            encoder_keys=(*_VQGAN_KEYS, "num_embeddings", "num_res_blocks", "dropout"),
            decoder_keys=("out_channels", "num_patches"),
            stages_key="channel_multiplier",
            codes_key="num_embeddings",
            size=lambda entries, downsampling: entries["num_patches"] * downsampling,
            codes=_vqgan_codes,
            images=_janus_images,
        ),
        Kind(
            name="emu3_vqgan",
            library="transformers",
            class_name="Emu3VQVAE",
            config_name="Emu3VQVAEConfig",
            whole="emu3",
            encoder_keys=(
                *_VQGAN_KEYS,
                *("codebook_size", "temporal_downsample_factor", "num_res_blocks", "attn_resolutions"),
                *("hidden_size", "num_attention_heads", "attention_dropout"),
            ),
            decoder_keys=("out_channels",),
            stages_key="channel_multiplier",
            codes_key="codebook_size",
            size=lambda *_: None,
            codes=_emu3_codes,
            images=_emu3_images,
            frames_key="temporal_downsample_factor",
        ),
        Kind(
            name="VQModel",
            library="diffusers",
            class_name="VQModel",
            config_name=None,
            whole=None,
            encoder_keys=(
                *("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "act_fn"),
                *("latent_channels", "norm_num_groups", "mid_block_add_attention", "num_vq_embeddings", "vq_embed_dim"),
            ),
            decoder_keys=("out_channels", "up_block_types", "norm_type", "sample_size"),
            stages_key="block_out_channels",
            codes_key="num_vq_embeddings",
            size=lambda entries, _: entries["sample_size"],
            codes=_vqmodel_codes,
            images=_vqmodel_images,
        ),
    )
}
LIMITS = {
    "num_res_blocks": MAX_BLOCKS,
    "layers_per_block": MAX_BLOCKS,
    "temporal_downsample_factor": MAX_FRAMES,
    "num_attention_heads": 4096,
}
