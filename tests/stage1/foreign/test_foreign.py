"""Codecs of other libraries: the codes and images of the libraries themselves, from real classes at tiny sizes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stage1_vqvae.architecture import Architecture, VQVAEConfig
from stage1_vqvae.codecs import open_codec
from stage1_vqvae.foreign import ForeignCodec
from stage1_vqvae.foreign.weights import foreign_files
from stage1_vqvae.model import VQVAE
from stage1_vqvae.quantizer_settings import QuantizerSettings
from vq_prior.cli import main
from vq_prior.core.disk.artifacts import new_folder
from vq_prior.core.disk.code_store import CodeStore
from vq_prior.core.errors import ArtifactError, EnvironmentFault, UsageError

VQGAN = {"embed_dim": 8, "latent_channels": 16, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1}
EMU3 = {
    **VQGAN,
    **{"embed_dim": 4, "latent_channels": 4, "codebook_size": 24, "attn_resolutions": [1], "hidden_size": 32},
    "temporal_downsample_factor": 2,
}
TEXT = {
    **{"vocab_size": 4096, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
SIZE = (16, 16)


def chameleon() -> Any:
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    return ChameleonVQVAE(ChameleonVQVAEConfig(**VQGAN, num_embeddings=24, resolution=16))


def janus() -> Any:
    from transformers import JanusVQVAE, JanusVQVAEConfig

    return JanusVQVAE(JanusVQVAEConfig(**VQGAN, num_embeddings=24, num_patches=8))


def emu3() -> Any:
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    return Emu3VQVAE(Emu3VQVAEConfig(**EMU3))


def vqmodel(**changes: Any) -> Any:
    from diffusers import VQModel

    described = {
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        **{"block_out_channels": (32, 32), "latent_channels": 8, "num_vq_embeddings": 24, "sample_size": 16},
    }
    return VQModel(**(described | changes))


MAKERS: dict[str, Callable[[], Any]] = {
    "chameleon_vqgan": chameleon,
    "janus_vqgan": janus,
    "emu3_vqgan": emu3,
    "VQModel": vqmodel,
}
DECODING = ["janus_vqgan", "emu3_vqgan", "VQModel"]


def spread(module: Any) -> Any:
    """Draw weights that keep signals at unit size, so that many codes occur, and move the statistics of norms."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.ndim > 1:
                fan_in = 1 if "embedding" in name else tensor[0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan_in**0.5)
            elif name.endswith(("running_mean", "running_var", "bias")):
                tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.5)
    return module.eval()


def made(name: str) -> Any:
    torch.manual_seed(0)
    return spread(MAKERS[name]())


def saved(folder: Path, name: str) -> Path:
    made(name).save_pretrained(folder)
    return folder


def images(count: int, size: tuple[int, int] = SIZE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 3, *size, generator=generator) * 2 - 1


@torch.no_grad()
def stock_codes(name: str, module: Any, x: torch.Tensor) -> torch.Tensor:
    """The library's own codes, as its documentation gets them."""
    if name == "VQModel":
        return module.quantize(module.encode(x).latents)[2][2].view(len(x), 8, 8)
    if name == "emu3_vqgan":
        return torch.stack(module.encode(x, image_sizes=torch.tensor([x.shape[-2:]] * len(x))).image_tokens)
    return module.encode(x).image_tokens.view(len(x), 8, 8)


@torch.no_grad()
def stock_images(name: str, module: Any, codes: torch.Tensor) -> torch.Tensor:
    """The library's own images of codes."""
    if name == "VQModel":
        size = (len(codes), 8, 8, module.quantize.vq_embed_dim)
        vectors = module.quantize.get_codebook_entry(codes.flatten(), size)
        return module.decode(vectors, force_not_quantize=True).sample
    return module.decode(codes.flatten(1) if name == "janus_vqgan" else codes)


def opened(folder: Path, **options: Any) -> ForeignCodec:
    codec = open_codec(folder, **{"shape": SIZE, "to_decode": False} | options)
    assert isinstance(codec, ForeignCodec)
    return codec


@pytest.mark.one_of
@pytest.mark.parametrize("name", MAKERS)
def test_codes_and_images_are_those_of_the_library(tmp_path: Path, name: str) -> None:
    codec, stock = opened(saved(tmp_path / "codec", name)), type(made(name)).from_pretrained(tmp_path / "codec").eval()
    x = images(5)
    (codes,) = codec.encode(x)
    assert codes.dtype == torch.int64
    assert codes.shape == (5, *codec.spec.levels[0].grid) == (5, 8, 8)
    assert torch.equal(codes, stock_codes(name, stock, x))
    assert len(codes.unique()) >= 4  # else equal codes would say little
    assert any("no manifest.json" in note for note in codec.notes)
    if name in DECODING:
        ours, theirs = codec.decode((codes,)), stock_images(name, stock, codes).clamp(-1, 1)
        assert ours.shape == x.shape
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # other row counts round otherwise


@pytest.mark.one_of
@pytest.mark.parametrize("name", MAKERS)
def test_a_row_does_not_depend_on_the_others_nor_on_what_surrounds_it(tmp_path: Path, name: str) -> None:
    codec, x = opened(saved(tmp_path / "codec", name)), images(19)
    (whole,) = codec.encode(x)
    decoded = codec.decode((whole,)) if name in DECODING else None
    codec.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for rows in (slice(0, 1), slice(3, 10), slice(17, 19)):
            assert torch.equal(codec.encode(x[rows])[0], whole[rows])
            if decoded is not None:
                assert torch.equal(codec.decode((whole[rows],)), decoded[rows])
    assert codec.training


@pytest.mark.one_of
@pytest.mark.parametrize("name", MAKERS)
def test_codec_id_sees_encoder_codebook_size_and_preprocessing_only(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "codec", name)
    reference = opened(folder).codec_id
    assert opened(folder).codec_id == reference
    assert opened(folder, shape=(16, 8)).codec_id != reference
    changes = {"encoder.conv_in.bias": True, "quantize.embedding.weight": True, "quant_conv.bias": True}
    if name == "emu3_vqgan":
        changes = {"encoder.conv_in.bias": True, "encoder.time_res_stack.0.norm1.running_var": True}
    changes["post_quant_conv.conv.bias" if name == "emu3_vqgan" else "post_quant_conv.bias"] = False
    if name in DECODING:
        changes["decoder.conv_out.bias"] = False
    for tensor, changed in changes.items():
        codec = opened(folder)
        with torch.no_grad():
            codec.module.state_dict()[tensor].add_(1)
        assert (codec.codec_id != reference) is changed, tensor
    (folder / "preprocessor_config.json").write_text('{"image_mean": 0.5, "image_std": [0.5, 0.5, 0.5]}')
    assert opened(folder).codec_id == reference  # says what holds without it
    (folder / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert opened(folder).codec_id != reference


def test_pixels_enter_as_the_preprocessor_says_and_leave_the_same_way(tmp_path: Path) -> None:
    folder = saved(tmp_path / "codec", "janus_vqgan")
    mean, std, rescale = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4], 0.0078
    document = {"image_mean": mean, "image_std": std, "rescale_factor": rescale, "do_rescale": True}
    # Newer transformers keeps it in processor_config.json.
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": document}))
    codec, stock, x = opened(folder), made("janus_vqgan"), images(4)
    m, s = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
    seen = (((x.double() + 1) * 127.5 * rescale - m) / s).float()
    (codes,) = codec.encode(x)
    assert torch.equal(codes, stock_codes("janus_vqgan", stock, seen))
    out = stock_images("janus_vqgan", stock, codes).double()
    expected = ((out * s + m) / rescale / 127.5 - 1).clamp(-1, 1).float()
    torch.testing.assert_close(codec.decode((codes,)), expected, rtol=0, atol=1e-5)


def whole_model(name: str) -> Any:
    """A tiny model that holds the tokeniser of `made(name)`."""
    import transformers as t

    part = {key: value for key, value in made(name).config.to_dict().items() if key != "model_type"}
    known = {"vq_config": part, "vocabulary_map": {"<image>": 3}}
    torch.manual_seed(0)
    if name == "chameleon_vqgan":
        model: Any = t.ChameleonForConditionalGeneration(t.ChameleonConfig(**TEXT, **known))
    elif name == "emu3_vqgan":
        model = t.Emu3ForConditionalGeneration(t.Emu3Config(text_config=TEXT, **TEXT, **known))
    else:
        vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 16}
        vision |= {"image_size": 32, "patch_size": 4}
        config = t.JanusConfig(text_config={"model_type": "llama", **TEXT}, vision_config=vision, vq_config=part)
        model = t.JanusForConditionalGeneration(config)
    model.model.vqmodel.load_state_dict(made(name).state_dict())
    return model


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chameleon_vqgan", {"max_shard_size": "100KB"}),
        ("janus_vqgan", {"max_shard_size": "200KB"}),
        ("emu3_vqgan", {}),
    ],
)
def test_of_a_whole_model_only_the_tokeniser_is_read(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    alone = opened(saved(tmp_path / "alone", name))
    whole_model(name).save_pretrained(tmp_path / "whole", **options)
    index = tmp_path / "whole" / "model.safetensors.index.json"
    assert index.exists() is bool(options)
    if options:
        config, needed = json.loads((tmp_path / "whole" / "config.json").read_text()), json.loads(index.read_text())
        files = foreign_files(config, needed)
        others = [path for path in (tmp_path / "whole").iterdir() if path.name not in files]
        assert any(path.suffix == ".safetensors" for path in others)
        for path in others:  # a shard of the language model alone need not even be there
            path.unlink()
    codec = opened(tmp_path / "whole")
    assert codec.codec_id == alone.codec_id
    assert torch.equal(codec.encode(images(3))[0], alone.encode(images(3))[0])
    half = tmp_path / "half"
    whole_model(name).to(torch.bfloat16).save_pretrained(half)
    assert {tensor.dtype for tensor in opened(half).module.parameters()} == {torch.float32}


def test_size_is_that_of_the_config_or_the_one_asked_for(tmp_path: Path) -> None:
    for name in ("chameleon_vqgan", "janus_vqgan", "VQModel"):
        folder = saved(tmp_path / name, name)
        assert opened(folder, shape=None).spec.shape == SIZE
        codec = opened(folder, shape=(12, 20))
        (codes,) = codec.encode(images(2, (12, 20)))
        assert codes.shape == (2, 6, 10)
        if name in DECODING:
            assert codec.decode((codes,)).shape == (2, 3, 12, 20)
        with pytest.raises(UsageError, match=r"image size 15x16 does not fit .*multiple of 2"):
            opened(folder, shape=(15, 16))
    with pytest.raises(UsageError, match=r"names no image size; give one .*multiple of 2"):
        opened(saved(tmp_path / "emu3", "emu3_vqgan"), shape=None)
    whole_model("janus_vqgan").save_pretrained(tmp_path / "whole")
    assert opened(tmp_path / "whole", shape=None).spec.shape == SIZE  # 32 / 4 patches of 2 pixels


@pytest.mark.parametrize("name", DECODING)
def test_a_written_codec_is_the_same_codec(tmp_path: Path, name: str) -> None:
    codec = opened(saved(tmp_path / "codec", name), shape=(8, 12))
    for copy in ("a", "b"):
        with new_folder(tmp_path / copy) as staging:
            codec.save(staging)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    again = opened(tmp_path / "a", shape=None)
    assert (again.codec_id, again.spec, again.notes) == (codec.codec_id, codec.spec, ())
    (codes,) = codec.encode(images(2, (8, 12)))
    assert torch.equal(again.decode((codes,)), codec.decode((codes,)))
    flipped = (tmp_path / "a" / "model.safetensors").read_bytes()[:-1] + b"\x77"
    (tmp_path / "a" / "model.safetensors").write_bytes(flipped)
    with pytest.raises(ArtifactError, match="damaged"):
        opened(tmp_path / "a")


def test_what_cannot_decode_says_so(tmp_path: Path) -> None:
    folder = saved(tmp_path / "codec", "chameleon_vqgan")
    with pytest.raises(UsageError, match="chameleon_vqgan cannot decode: transformers has no decoder"):
        open_codec(folder)
    with pytest.raises(UsageError, match="cannot decode"):
        opened(folder).decode((torch.zeros(1, 8, 8, dtype=torch.int64),))
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "decoder.conv_in.bias": torch.zeros(3)}, folder / "model.safetensors")
    assert any("1 decoder tensors" in note for note in opened(folder).notes)


@pytest.mark.one_of
@pytest.mark.parametrize(
    ("name", "form"),
    [("janus_vqgan", "torch"), ("emu3_vqgan", "torch"), ("emu3_vqgan", "onnx"), ("VQModel", "onnx")],
)
def test_an_export_takes_any_number_of_rows(name: str, form: str, tmp_path: Path) -> None:
    folder, x = saved(tmp_path / "codec", name), images(7)
    words = ["export", "--codec", folder, "--image-size", 16, "--format", form, "--out", tmp_path / "out"]
    assert main([*map(str, words)]) == 0
    codes = stock_codes(name, made(name), x)
    expected = stock_images(name, made(name), codes).clamp(-1, 1)
    if form == "torch":
        encode, decode = (torch.export.load(tmp_path / f"out/{half}.pt2").module() for half in ("encode", "decode"))
        theirs, decoded = encode(x)[0], decode(codes)
    else:
        onnxruntime = pytest.importorskip("onnxruntime")
        encode, decode = (
            onnxruntime.InferenceSession(tmp_path / f"out/{half}.onnx", providers=["CPUExecutionProvider"])
            for half in ("encode", "decode")
        )
        theirs = torch.from_numpy(encode.run(None, {"values": x.numpy()})[0])
        decoded = torch.from_numpy(decode.run(None, {"codes.0": codes.numpy()})[0])
    assert torch.equal(theirs, codes)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-4)


def test_shapes_and_ranges_are_checked(tmp_path: Path) -> None:
    codec = opened(saved(tmp_path / "codec", "VQModel"))
    with pytest.raises(UsageError, match=r"\[B, 3, 16, 16\], got \[1, 3, 16, 8\]"):
        codec.encode(torch.zeros(1, 3, 16, 8))
    with pytest.raises(UsageError, match=r"\[0, 24\), got 24 to 24"):
        codec.decode((torch.full((1, 8, 8), 24),))


def edited(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("janus_vqgan", {"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ("janus_vqgan", {"model_type": "surprise"}, r"one of vq_prior_vqvae, chameleon_vqgan, .*got 'surprise'"),
        ("janus_vqgan", {"base_channels": 2**40}, "base_channels must be between 0 and 1048576"),
        ("janus_vqgan", {"num_res_blocks": 10**6}, "num_res_blocks must be between 0 and 16"),
        (
            "janus_vqgan",
            {"channel_multiplier": [1] * 1000},
            "channel_multiplier must be a value or a list of at most 8",
        ),
        ("janus_vqgan", {"channel_multiplier": []}, "channel_multiplier must be a list"),
        ("janus_vqgan", {"base_channels": 2**20, "channel_multiplier": [2**20, 2**20]}, "describes no janus_vqgan"),
        ("janus_vqgan", {"base_channels": 64}, r"'.*' is torch.float32 \[.*its config wants"),
        ("janus_vqgan", {"base_channels": 33}, "describes no janus_vqgan"),
        ("janus_vqgan", {"base_channels": "many"}, "describes no janus_vqgan"),
        ("janus_vqgan", {"num_res_blocks": 2}, "lacks tensor 'decoder"),
        ("janus_vqgan", {"double_latent": True}, "describes no working janus_vqgan"),
        ("janus_vqgan", {"in_channels": 4}, "in_channels must be 1 or 3"),
        ("emu3_vqgan", {"hidden_size": 64}, "describes no working emu3_vqgan"),
        ("emu3_vqgan", {"temporal_downsample_factor": 2**15}, "temporal_downsample_factor"),
        ("VQModel", {"down_block_types": ["os.system"] * 2}, "down_block_types must be of"),
        ("VQModel", {"act_fn": "surprise"}, "describes no VQModel"),
        ("VQModel", {"_class_name": "AutoencoderKL"}, "got 'AutoencoderKL'"),
        ("VQModel", {"num_vq_embeddings": 10**6}, "quantize.embedding.weight"),
    ],
)
def test_a_config_that_does_not_hold_is_refused(tmp_path: Path, name: str, changes: Any, message: str) -> None:
    edited(saved(tmp_path / "codec", name), **changes)
    with pytest.raises(ArtifactError, match=message) as caught:
        opened(tmp_path / "codec")
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_hold_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "codec", "janus_vqgan")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    cases: dict[str, dict[str, torch.Tensor]] = {
        "has an unknown tensor 'surprise'": {**tensors, "surprise": torch.zeros(1)},
        "not finite": {**tensors, "quant_conv.bias": torch.full((8,), torch.nan)},
        "quant_conv.bias.*torch.int64": {**tensors, "quant_conv.bias": torch.zeros(8, dtype=torch.int64)},
        "lacks tensor 'quant_conv.bias'": {name: t for name, t in tensors.items() if name != "quant_conv.bias"},
    }
    for message, content in cases.items():
        save_file(content, file)
        with pytest.raises(ArtifactError, match=message):
            opened(folder)
    file.unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../elsewhere.safetensors"}}')
    with pytest.raises(ArtifactError, match="weight_map must give each tensor"):
        opened(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(ArtifactError, match=r"pytorch_model\.bin, which can run code and is not read"):
        opened(folder)


@pytest.mark.parametrize(
    "document",
    ['{"image_mean": ["a", 1, 1]}', '{"image_std": 0}', "[]", '{"image_mean": [1, 2]}', '{"image_std": NaN}'],
)
def test_a_preprocessor_that_does_not_hold_is_refused(tmp_path: Path, document: str) -> None:
    folder = saved(tmp_path / "codec", "chameleon_vqgan")
    (folder / "preprocessor_config.json").write_text(document)
    with pytest.raises(ArtifactError, match=r"preprocessor_config\.json"):
        opened(folder)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "codec", "VQModel")
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(
        EnvironmentFault, match=r'VQModel of diffusers, which is missing; pip install "vq-prior\[foreign\]"'
    ):
        opened(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{number:02d}.png")
    return folder


@pytest.mark.one_of
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["janus_vqgan", "emu3_vqgan"])
def test_the_whole_road_with_a_foreign_codec(
    name: str, tmp_path: Path, pictures: Path, run_cli: Callable[..., Any]
) -> None:
    whole_model(name).save_pretrained(tmp_path / "whole", max_shard_size="200KB")
    codes, run = tmp_path / "codes", tmp_path / "run"

    def done(*arguments: object) -> str:
        result = run_cli(*arguments)
        assert (result.returncode, result.stderr) == (0, ""), result.stdout + result.stderr
        return result.stdout

    def here(*arguments: object) -> None:
        assert main([*map(str, arguments)]) == 0

    given = ("--codec", tmp_path / "whole", "--data", pictures)
    out = done("extract-codes", *given, "--image-size", "8x12", "--out", codes)
    assert "no manifest.json" in out
    store, codec = CodeStore.open(codes), opened(tmp_path / "whole", shape=(8, 12))
    assert store.index.codec.id == codec.codec_id
    assert store.spec.levels[0].grid == (4, 6)
    done("train-prior", "--codes", codes, "--codec", tmp_path / "whole", "--out", run, "--steps", 4, "--batch-size", 8)
    model = run / "model"
    assert sorted(path.name for path in (model / "vqvae").iterdir()) == [
        *("config.json", "manifest.json", "model.safetensors", "preprocessor_config.json")
    ]
    assert json.loads((model / "config.json").read_text())["components"]["vqvae"]["kind"] == name
    assert list((run / "prior-training" / "images").glob("*.png"))
    shutil.rmtree(tmp_path / "whole")  # MODEL stands alone
    here("generate", "--model", model, "--num-images", 3, "--out", tmp_path / "drawn")
    with Image.open(tmp_path / "drawn" / "000002.png") as picture:
        assert picture.size == (12, 8)
    here("verify", model)
    here("evaluate", "--model", model, "--data", pictures, "--out", tmp_path / "scores.json")
    here("assemble", "--codec", model, "--prior", run, "--out", model)  # equal: left as it is

    from vq_prior import VQPriorPipeline

    pipeline = VQPriorPipeline.from_pretrained(model)
    pipeline.save_pretrained(tmp_path / "again")
    for path in (model / "vqvae").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "vqvae" / path.name).read_bytes()


def test_the_command_line_says_what_is_wrong(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved(tmp_path / "codec", "chameleon_vqgan")

    def fails(code: int, message: str, *arguments: object) -> None:
        assert main([*map(str, arguments)]) == code
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert message in line

    given = ("--codec", folder, "--data", pictures, "--out", tmp_path / "out")
    fails(2, "image size 15x15 does not fit", "extract-codes", *given, "--image-size", 15)
    fails(2, "cannot decode", "reconstruct", *given)
    fails(2, "a codec of another library", "resize-codebook", *given, "--codebook-size", 8)
    edited(folder, auto_map={"AutoModel": "evil.Model"})
    fails(3, "auto_map", "extract-codes", *given)
    assert not (tmp_path / "out").exists()


def test_the_size_of_our_own_codec_is_fixed(tmp_path: Path) -> None:
    own = VQVAE(VQVAEConfig(Architecture(3, (8, 8), 4, 16, 8, 1, QuantizerSettings(num_codes=16, code_dim=4))))
    with new_folder(tmp_path / "vqvae") as staging:
        own.save(staging)
    assert open_codec(tmp_path).codec_id == own.codec_id
    with pytest.raises(UsageError, match="is for images of 8x8, which is fixed; leave --image-size out"):
        open_codec(tmp_path, shape=(8, 8))
