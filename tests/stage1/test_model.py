"""The codec: shapes in every rank, bits that do not depend on the batch, identity, and its files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stage1_vqvae.architecture import Architecture, VQVAEConfig
from stage1_vqvae.blocks import BottleneckBlock, ResidualBlock, SelfAttention, crop_to, pad_to
from stage1_vqvae.losses import reconstruction_terms, weighted_sum, weights_of
from stage1_vqvae.model import VQVAE, load_codec, save_codec
from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.settings import LossSettings
from vq_prior.core.disk.artifacts import new_folder
from vq_prior.core.errors import ArtifactError, UsageError

TINY = Architecture(3, (12, 10), 4, 16, 8, 1, QuantizerSettings(num_codes=16, code_dim=4))
ATTENTIVE = replace(TINY, width=32, attention=True, blocks_per_resolution=1)
SONNET = replace(TINY, network="sonnet")
BOTTLENECK = replace(ATTENTIVE, network="bottleneck")
NETWORKS = pytest.mark.parametrize(
    "network", [TINY, ATTENTIVE, SONNET, BOTTLENECK], ids=["residual", "attentive", "sonnet", "bottleneck"]
)
NOTEBOOK = Architecture(3, (32, 32), 4, 128, 32, 2, QuantizerSettings(num_codes=512, code_dim=64), network="sonnet")


def codec(architecture: Architecture = TINY) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(architecture)).eval()


def images(count: int, architecture: Architecture = TINY) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, architecture.channels, *architecture.shape, generator=generator) * 2 - 1


def saved(folder: Path, model: VQVAE) -> Path:
    with new_folder(folder) as staging:
        save_codec(model, staging)
    return folder


@pytest.mark.parametrize(
    ("network", "squares"),
    [(TINY, (5.5129, 54.1239, 5.4669)), (BOTTLENECK, (11.0752, 56.5063, 10.0953)), (SONNET, (6.3316, 60.303, 12.0038))],
    ids=["residual", "bottleneck", "sonnet"],
)
def test_a_seed_begins_with_the_weights_that_it_always_had(
    network: Architecture, squares: tuple[float, float, float]
) -> None:
    model = codec(network)
    first = [next(iter(model.encoder.parameters())), model.quantizer.table(), next(iter(model.decoder.parameters()))]
    assert [float(each.detach().double().square().sum()) for each in first] == pytest.approx(squares, abs=1e-4)


@pytest.mark.parametrize("shape", [(20,), (12, 10), (6, 5, 7)])
@pytest.mark.parametrize("name", ["ema", "nearest"])
@pytest.mark.parametrize("downsampling", [2, 4, 8])
@NETWORKS
def test_codec_of_every_rank(shape: tuple[int, ...], name: str, downsampling: int, network: Architecture) -> None:
    quantizer = replace(TINY.quantizer, name=name)
    architecture = replace(network, shape=shape, channels=2, downsampling=downsampling, quantizer=quantizer)
    model = codec(architecture)
    x = images(3, architecture)
    grid = tuple(-(-side // downsampling) for side in shape)
    (codes,) = model.encode(x)
    assert codes.shape == (3, *grid)
    assert codes.dtype == torch.int64
    decoded = model.decode((codes,))
    assert decoded.shape == x.shape
    assert decoded.abs().max() <= 1
    output = model.train()(x)
    assert output.images.shape == x.shape
    (output.images.square().mean() + sum(output.loss.values())).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize(
    ("shape", "factors", "grid"),
    [((700,), 320, (3,)), ((9, 20, 33), (4, 8, 8), (3, 3, 5)), ((14, 9), (7, 3), (2, 3)), ((7, 16), (1, 6), (7, 3))],
)
@NETWORKS
def test_each_axis_has_its_factor(
    shape: tuple[int, ...], factors: int | tuple[int, ...], grid: tuple[int, ...], network: Architecture, tmp_path: Path
) -> None:
    architecture = replace(network, shape=shape, channels=2, downsampling=factors)
    model, x = codec(architecture), images(2, architecture)
    loaded = load_codec(saved(tmp_path / "vqvae", model))
    assert loaded.architecture.downsampling == factors
    (codes,) = model.encode(x)
    assert codes.shape == (2, *grid)
    assert torch.equal(loaded.encode(x)[0], codes)
    assert model.decode((codes,)).shape == x.shape
    each = factors if isinstance(factors, tuple) else (factors,)
    strides = torch.tensor([layer.stride for layer in model.encoder.down])
    assert tuple(strides.prod(0).tolist()) == each
    assert strides.tolist() == torch.tensor([layer.stride for layer in model.decoder.up]).flip(0).tolist()
    # Every number is read: one that is no part of the padding changes the latents.
    with torch.no_grad():
        latents = model.latents(x)
        for place in np.ndindex(*[min(3 * factor, side) for factor, side in zip(each, shape, strict=True)]):
            if sum(place) % 29 == 0:
                changed = x.clone()
                changed[(0, 0, *place)] += 1
                assert not torch.equal(model.latents(changed), latents), place


def test_padding_beyond_reason_is_refused_before_anything_is_made() -> None:
    with pytest.raises(ArtifactError, match=r"describes a tensor of 206158430208 numbers"):
        replace(TINY, shape=(5, 5, 5), downsampling=4096).check("here")


def test_factors_that_are_alike_are_the_one_number_that_they_are() -> None:
    assert replace(TINY, downsampling=(4, 4)) == TINY
    assert codec(replace(TINY, downsampling=(4, 4))).codec_id == codec().codec_id
    assert codec(replace(TINY, downsampling=(4, 2))).codec_id != codec().codec_id


def test_sonnet_has_the_parameters_of_the_notebook() -> None:
    def count(*layers: tuple[int, int, int]) -> int:
        return sum(before * after * area + after for before, after, area in layers)

    block = [(128, 32, 9), (32, 128, 1)]
    model = codec(NOTEBOOK)
    encoder = count((3, 64, 16), (64, 128, 16), (128, 128, 9), *block, *block, (128, 64, 1))
    decoder = count((64, 128, 9), *block, *block, (128, 64, 16), (64, 3, 16))
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.decoder.parameters()) == decoder


def test_sonnet_computes_what_the_notebook_writes() -> None:
    model = codec(replace(NOTEBOOK, shape=(16, 12)))
    weights = model.state_dict()

    def layer(function: Callable[..., Tensor], name: str, x: Tensor, **options: int) -> Tensor:
        return function(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    def stack(part: str, x: Tensor) -> Tensor:
        for n in range(2):
            h = layer(F.conv2d, f"{part}.stack.conv_in.{n}", x.relu(), padding=1)
            x = x + layer(F.conv2d, f"{part}.stack.conv_out.{n}", h.relu())
        return x.relu()

    x = images(2, model.architecture)
    h = layer(F.conv2d, "encoder.down.0", x, stride=2, padding=1).relu()
    h = layer(F.conv2d, "encoder.down.1", h, stride=2, padding=1).relu()
    h = layer(F.conv2d, "encoder.mix", h, padding=1).relu()
    latents = layer(F.conv2d, "encoder.out", stack("encoder", h))
    h = stack("decoder", layer(F.conv2d, "decoder.stem", latents, padding=1))
    h = layer(F.conv_transpose2d, "decoder.up.0", h, stride=2, padding=1).relu()
    h = layer(F.conv_transpose2d, "decoder.up.1", h, stride=2, padding=1)
    with torch.no_grad():  # tolerance: another order of the same float32 sums
        torch.testing.assert_close(model.encoder(x), latents, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.decoder(latents), h, rtol=1e-4, atol=1e-5)


def test_sonnet_draws_weights_as_sonnet_does() -> None:
    for name, tensor in codec(NOTEBOOK).state_dict().items():
        if name.startswith("quantizer."):
            continue
        if name.endswith(".bias"):
            assert not tensor.any(), name
            continue
        transposed = name.startswith("decoder.up.")
        deviation = (tensor.shape[0 if transposed else 1] * tensor.shape[2:].numel()) ** -0.5
        assert tensor.abs().max() <= 2 * deviation * (1 + 1e-6), name
        # A normal cut at two deviations has 0.8796 of its deviation; a quarter of it would be another rule.
        assert abs(float(tensor.std()) / deviation - 0.88) < 0.04, name


@pytest.mark.parametrize(("shape", "channels", "head"), [((7,), 64, 64), ((3, 5), 96, 32), ((2, 3, 2), 128, 64)])
def test_self_attention_is_softmax_of_scaled_products(shape: tuple[int, ...], channels: int, head: int) -> None:
    torch.manual_seed(0)
    block = SelfAttention(channels)
    x = torch.randn(2, channels, *shape)
    assert torch.equal(block(x), x)  # the branch starts at zero
    torch.nn.init.normal_(block.out.weight)
    normal = F.group_norm(x, 8, block.norm.weight, block.norm.bias).flatten(2)
    query, key, value = torch.einsum("oc,bcn->bon", block.qkv.weight, normal).add(block.qkv.bias[:, None]).chunk(3, 1)
    mixed = []
    for first in range(0, channels, head):
        q, k, v = (part[:, first : first + head] for part in (query, key, value))
        mixed.append(v @ (torch.einsum("bcn,bcm->bnm", q, k) / head**0.5).softmax(-1).transpose(1, 2))
    expected = x + torch.einsum("oc,bcn->bon", block.out.weight, torch.cat(mixed, 1)).reshape(x.shape)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)  # another order of the sums


@pytest.mark.parametrize(("network", "block"), [(ATTENTIVE, ResidualBlock), (BOTTLENECK, BottleneckBlock)])
def test_blocks_per_resolution_stand_at_every_resolution_between_image_and_grid(
    network: Architecture, block: type[ResidualBlock | BottleneckBlock]
) -> None:
    model = codec(replace(network, shape=(32, 32), downsampling=8, num_residual_blocks=3, blocks_per_resolution=2))
    seen: list[tuple[int, int]] = []
    for module in model.modules():
        if isinstance(module, block | SelfAttention):
            module.register_forward_hook(lambda m, _, out: seen.append((out.shape[-1], isinstance(m, SelfAttention))))
    model(images(1, model.architecture))
    grid = [(4, False), (4, True), (4, False), (4, False)]
    assert seen == [(16, False)] * 2 + [(8, False)] * 2 + grid + grid + [(8, False)] * 2 + [(16, False)] * 2


@pytest.mark.parametrize(("network", "widths"), [("residual", [32, 64, 128, 256]), ("bottleneck", [32, 32, 64, 256])])
def test_channels_fall_from_the_grid_to_the_image(network: str, widths: list[int]) -> None:
    model = codec(replace(TINY, network=network, shape=(32, 32), width=256, downsampling=16))
    assert [layer.weight.shape[0] for layer in model.encoder.down] == widths
    assert [layer.weight.shape[0] for layer in model.decoder.up] == widths[::-1]


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_bottleneck_block_is_what_its_page_says(rank: int) -> None:
    torch.manual_seed(0)
    block, x = BottleneckBlock(rank, 16, 8), torch.randn(2, 16, *(5, 3, 4)[:rank])
    assert not block.conv_out.weight.any()
    torch.nn.init.normal_(block.conv_out.weight)  # type: ignore[arg-type]
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[rank]
    h = F.silu(F.group_norm(x, 8, block.norm.weight, block.norm.bias))  # type: ignore[arg-type]
    for layer, padding in ((block.conv_in, 0), (block.conv_mid, 1), (block.conv_out, 0)):
        h = convolve(h, layer.weight, layer.bias, padding=padding)  # type: ignore[arg-type]
        h = h if layer is block.conv_out else F.silu(h)
    torch.testing.assert_close(block(x), x + h, rtol=1e-4, atol=1e-4)  # another order of the sums


def test_latents_of_a_bottleneck_tell_the_contrast_of_an_image() -> None:
    told = {}
    for network in ("residual", "bottleneck"):
        encoder = codec(replace(TINY, network=network, num_residual_blocks=0)).encoder
        for layer in (*encoder.down, encoder.out):
            torch.nn.init.zeros_(layer.bias)
        with torch.no_grad():
            weak, strong = (encoder(images(1) * contrast) for contrast in (0.25, 1.0))
        told[network] = float(strong.std() / weak.std())
    assert told["residual"] < 2 < told["bottleneck"]


@NETWORKS
def test_codes_are_the_same_bytes_whatever_the_strides_and_after_loading(network: Architecture, tmp_path: Path) -> None:
    model, x = codec(network).train(), images(5, network)
    loss = model(x).images.square().mean()
    loss.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    loaded = load_codec(saved(tmp_path / "vqvae", model))
    (codes,), latents = model.encode(x), model.encode_latents(x)
    decoded = model.decode((codes,))
    strided = torch.zeros(5, *network.shape, 2 * network.channels)[..., ::2].movedim(-1, 1).copy_(x)
    for same in (x, x.contiguous(memory_format=torch.channels_last), strided):
        for one in (model, loaded):
            assert torch.equal(one.encode_latents(same), latents)
            assert torch.equal(one.encode(same)[0], codes)
            assert torch.equal(one.decode((codes,)), decoded)
    assert all(tensor.is_contiguous() for tensor in model.state_dict().values())


def test_padding_repeats_the_last_pixel_and_cropping_undoes_it() -> None:
    x = images(2)
    padded = pad_to(x, (12, 12))
    assert torch.equal(padded[..., 10], x[..., 9])
    assert torch.equal(padded[..., 11], x[..., 9])
    assert torch.equal(crop_to(padded, (12, 10)), x)


@pytest.mark.parametrize("channels_last", [False, True])
def test_codes_and_images_do_not_depend_on_the_batch(channels_last: bool) -> None:
    model, x = codec(), images(19)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    (whole,) = model.encode(x)
    decoded = model.decode((whole,))
    latents = model.encode_latents(x)
    for size in (1, 2, 7):
        for first in range(0, 19, size):
            part = slice(first, first + size)
            assert torch.equal(model.encode_latents(x[part]), latents[part])
            assert torch.equal(model.encode(x[part])[0], whole[part])
            assert torch.equal(model.decode((whole[part],)), decoded[part])


def test_encode_is_eval_float32_whatever_surrounds_it() -> None:
    model, x = codec(), images(4)
    expected = model.encode_latents(x)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.encode_latents(x), expected)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ((), "1 level"),
        ((torch.zeros(2, 3, 4, dtype=torch.int64),), r"\[B, 3, 3\]"),
        ((torch.full((2, 3, 3), 16),), r"\[0, 16\), got 16 to 16"),
        ((torch.full((2, 3, 3), -1),), "got -1 to -1"),
    ],
)
def test_decode_refuses_codes_out_of_range(codes: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        codec().decode(codes)


def test_encode_refuses_another_shape() -> None:
    with pytest.raises(UsageError, match=r"\[B, 3, 12, 10\], got \[1, 3, 12, 12\]"):
        codec().encode(torch.zeros(1, 3, 12, 12))


def test_reloaded_codec_computes_the_same(tmp_path: Path) -> None:
    model = codec()
    (codes,) = model.encode(images(5))
    ours = load_codec(saved(tmp_path / "vqvae", model))
    stock = VQVAE.from_pretrained(tmp_path / "vqvae")
    stock.save_pretrained(tmp_path / "again")
    again = load_codec(tmp_path / "again")
    for other in (ours, stock, again):
        assert torch.equal(other.encode(images(5))[0], codes)
        assert torch.equal(other.decode((codes,)), model.decode((codes,)))
        assert other.codec_id == model.codec_id
    assert torch.equal(load_codec(tmp_path).decode((codes,)), model.decode((codes,)))  # a RUN


def test_same_codec_same_bytes(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "a", codec()), saved(tmp_path / "b", codec())
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()
    config = json.loads((first / "config.json").read_text())
    assert set(config) == {"architecture", "architectures", "model_type"}


def test_codec_id_sees_encoder_codebook_and_size_only() -> None:
    reference = codec().codec_id
    for name, changes in {
        "decoder.stem.bias": False,
        "quantizer.ema_sums": False,
        "quantizer.ema_counts": False,
        "quantizer.codebook": True,
        "encoder.out.bias": True,
    }.items():
        model = codec()
        with torch.no_grad():
            model.state_dict()[name].add_(1)
        assert (model.codec_id != reference) is changes, name
    assert codec(replace(TINY, shape=(12, 12))).codec_id != reference
    assert codec(replace(TINY, quantizer=replace(TINY.quantizer, decay=0.5))).codec_id == reference


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    folder = saved(tmp_path / "vqvae", codec())
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        for position in range(0, len(original), max(1, len(original) // 5)):
            path.write_bytes(original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
            with pytest.raises(ArtifactError):
                load_codec(folder)
        path.write_bytes(original)
    load_codec(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("width", 12, "width"),
        ("width", True, "width"),
        ("downsampling", 34, "downsampling"),
        ("downsampling", [4], "downsampling must be 2 numbers"),
        ("num_residual_blocks", 10**5, "num_residual_blocks"),
        ("shape", [12, 10, 3, 3], "shape"),
        ("network", "plain", "network"),
        ("blocks_per_resolution", 65, "blocks_per_resolution"),
        ("attention", True, "width must be a multiple of 32"),
        ("surprise", 1, "unknown key 'surprise'"),
        ("width", 4096, "shape"),
    ],
)
def test_config_that_does_not_hold_is_refused(tmp_path: Path, key: str, value: object, message: str) -> None:
    folder = saved(tmp_path / "vqvae", codec())
    (folder / "manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["architecture"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ArtifactError, match=message):
        load_codec(folder)


@pytest.mark.parametrize("change", [{"attention": True, "width": 32}, {"blocks_per_resolution": 1}])
def test_sonnet_refuses_what_it_does_not_have(change: dict[str, int]) -> None:
    with pytest.raises(ArtifactError, match="network sonnet has neither attention nor blocks_per_resolution"):
        codec(replace(SONNET, **change))


def test_missing_codec_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere does not exist"):
        load_codec(tmp_path / "nowhere")


def test_loss_terms_are_weighted_by_name() -> None:
    x, y = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.5)
    assert float(reconstruction_terms(x, y, kind="mse")["reconstruction"]) == 0.25
    assert float(reconstruction_terms(x, y, kind="l1")["reconstruction"]) == 0.5
    terms = {name: torch.tensor(1.0) for name in ("reconstruction", "commitment", "codebook")}
    weights = LossSettings(reconstruction_weight=1.0, commitment_weight=10.0, codebook_weight=100.0)
    assert float(weighted_sum(terms, weights_of(weights))) == 111.0
