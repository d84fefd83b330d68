"""Exported halves of a codec compute what it computes, whatever runs them."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stage1_vqvae.architecture import Architecture, VQVAEConfig
from stage1_vqvae.model import VQVAE
from stage1_vqvae.quantizer_settings import QuantizerSettings
from vq_prior.cli import main
from vq_prior.core.disk.artifacts import write_manifest
from vq_prior.core.errors import NumericError
from vq_prior.model import export

QUANTIZERS = {
    "ema": {"num_codes": 24, "code_dim": 4},
    "simvq": {"num_codes": 24, "code_dim": 4, "distance": "cosine"},
    "fsq": {"num_codes": 240, "code_dim": 3},
    "lfq": {"num_codes": 16, "code_dim": 4, "entropy_temperature": 1.0},
}


def codec(
    quantizer: str = "ema",
    *,
    shape: tuple[int, ...] = (12, 10),
    channels: int = 3,
    network: str = "residual",
    grids: int = 1,
    depth: int = 1,
) -> VQVAE:
    """A codec whose every weight is random; its sides are no multiples of its factor."""
    settings = QuantizerSettings(quantizer, **QUANTIZERS[quantizer], depth=depth)
    architecture = Architecture(channels, shape, 4, 16, 8, 1, settings, network=network, grids=grids)
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig(architecture)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, tensor in model.named_buffers():
            if name.endswith("codebook"):
                tensor.copy_(torch.randn_like(tensor))
    return model


def saved(model: VQVAE, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_onnxruntime_gives_the_codes_and_the_pixels_of_the_codec(quantizer: str, tmp_path: Path, capsys: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = codec(quantizer)
    words = ["export", "--codec", str(saved(model, tmp_path / "codec")), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "checked by onnxruntime" in said.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "decode.onnx",
        "encode.onnx",
        "export.json",
        "manifest.json",
    ]
    told = json.loads((tmp_path / "out/export.json").read_text())
    assert told["values"]["shape"] == ["batch", 3, 12, 10]
    assert told["codec_id"] == model.codec_id
    values = torch.rand(7, 3, 12, 10, generator=torch.Generator().manual_seed(3)) * 2 - 1
    ours = model.encode(values)
    session = onnxruntime.InferenceSession(tmp_path / "out/encode.onnx", providers=["CPUExecutionProvider"])
    theirs = tuple(map(torch.from_numpy, session.run(["codes.0"], {"values": values.numpy()})))
    ((other, ties),) = model.compared(values, theirs)
    assert theirs[0].dtype == torch.int64
    assert bool((ties | ~other).all())
    assert int(other.sum()) <= 1
    session = onnxruntime.InferenceSession(tmp_path / "out/decode.onnx", providers=["CPUExecutionProvider"])
    (pixels,) = session.run(["values"], {"codes.0": ours[0].numpy()})
    np.testing.assert_allclose(pixels, model.decode(ours).numpy(), atol=1e-4)


@pytest.mark.parametrize(("shape", "channels", "network"), [((16,), 2, "residual"), ((8, 8), 1, "sonnet")])
def test_a_torch_program_needs_nothing_of_ours(
    shape: tuple[int, ...], channels: int, network: str, tmp_path: Path
) -> None:
    model = codec("ema", shape=shape, channels=channels, network=network)
    words = ["export", "--codec", str(saved(model, tmp_path / "codec")), "--out", str(tmp_path / "out")]
    assert main([*words, "--format", "torch"]) == 0
    values = torch.rand(3, channels, *shape) * 2 - 1
    encode = torch.export.load(tmp_path / "out/encode.pt2").module()
    decode = torch.export.load(tmp_path / "out/decode.pt2").module()
    codes = encode(values)
    assert torch.equal(codes[0], model.encode(values)[0])
    torch.testing.assert_close(decode(*codes), model.decode(codes), atol=1e-4, rtol=0)
    with zipfile.ZipFile(tmp_path / "out/encode.pt2") as archive:  # no pickle: those of PyTorch are a .zip, or begin so
        assert [n for n in archive.namelist() if archive.read(n)[:2] in (b"PK", b"\x80\x02", b"\x80\x05")] == []


@pytest.mark.parametrize(("form", "grids", "depth"), [("onnx", 2, 1), ("torch", 2, 2), ("onnx", 1, 3)])
def test_every_level_is_exported(form: str, grids: int, depth: int, tmp_path: Path) -> None:
    """What takes turns in the encoder, a grid after the other, is one file."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = codec("ema", grids=grids, depth=depth)
    words = ["export", "--codec", str(saved(model, tmp_path / "codec")), "--out", str(tmp_path / "out")]
    assert main([*words, "--format", form]) == 0
    told = json.loads((tmp_path / "out/export.json").read_text())
    names = [each["name"] for each in told["codes"]]
    assert names == [f"codes.{level}" for level in range(grids * depth)]
    assert [each["shape"][1:] for each in told["codes"]] == [list(level.grid) for level in model.spec.levels]
    values = torch.rand(4, 3, 12, 10, generator=torch.Generator().manual_seed(4)) * 2 - 1
    if form == "onnx":
        encode = onnxruntime.InferenceSession(tmp_path / "out/encode.onnx", providers=["CPUExecutionProvider"])
        codes = tuple(map(torch.from_numpy, encode.run(names, {"values": values.numpy()})))
        decode = onnxruntime.InferenceSession(tmp_path / "out/decode.onnx", providers=["CPUExecutionProvider"])
        fed = {name: level.numpy() for name, level in zip(names, codes, strict=True)}
        decoded = torch.from_numpy(decode.run(["values"], fed)[0])
    else:
        codes = torch.export.load(tmp_path / "out/encode.pt2").module()(values)
        decoded = torch.export.load(tmp_path / "out/decode.pt2").module()(*codes)
    assert all(bool((ties | ~other).all()) for other, ties in model.compared(values, codes))
    assert sum(int((a != b).sum()) for a, b in zip(model.encode(values), codes, strict=True)) <= 1
    torch.testing.assert_close(decoded, model.decode(codes), atol=1e-4, rtol=0)


def test_each_half_holds_its_own_weights_alone() -> None:
    model = codec("ema", grids=2)
    encoder, decoder = export.halves_of(model)
    assert decoder is not None
    assert not any("decoder" in name for name in encoder.state_dict())
    assert not any("encoder" in name for name in decoder.state_dict())
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "quantizer", "decoder"}  # whole as ever


def test_an_export_that_computes_something_else_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another codebook than the codec's, in the file alone."""
    folder = saved(codec("ema"), tmp_path / "codec")
    halves: Callable[..., Any] = export.halves_of

    def spoilt(_: VQVAE) -> Any:
        other = codec("ema")
        with torch.no_grad():
            other.quantizer.codebook.copy_(other.quantizer.codebook.flip(0))
        return halves(other)

    monkeypatch.setattr(export, "halves_of", spoilt)
    assert main(["export", "--codec", str(folder), "--out", str(tmp_path / "out"), "--format", "torch"]) == 4
    assert NumericError.exit_code == 4
    assert not (tmp_path / "out").exists()


def test_ties_are_told_from_other_codes() -> None:
    model = codec("ema")
    table = model.quantizer.codebook
    with torch.no_grad():
        table[1] = table[0] + 1e-7  # twins
    values = torch.rand(8, 3, 12, 10, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ours = model.encode(values)[0]
    twins = ours <= 1
    ((other, ties),) = model.compared(values, (torch.where(twins, 1 - ours, ours),))
    assert bool(other.any())  # not just where there are twins: which of two is nearer hangs on the size of the call
    assert bool(ties.all())
    latents = model.encode_latents(values)
    farthest = (latents[..., None, :] - table).square().sum(-1).argmax(-1)
    ((_, ties),) = model.compared(values, (farthest,))
    assert not bool(ties.any())


def test_codes_of_a_fine_grid_are_judged_in_the_light_of_those_above() -> None:
    """Another coarse code gives other latents below: the fine codes that follow from them are right."""
    model = codec("ema", grids=2)
    values = torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(1)) * 2 - 1
    coarse, fine = model.encode(values)
    above, below = (other for other, _ in model.compared(values, ((coarse + 1) % 24, fine)))
    assert bool(above.all())
    assert bool(below.any())
    assert not any(bool(other.any()) for other, _ in model.compared(values, (coarse, fine)))


def test_what_cannot_be_exported_says_why(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(codec("ema"), tmp_path / "codec")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    assert main(["export", "--codec", str(folder), "--out", str(tmp_path / "mine")]) == 2
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    assert main(["export", "--codec", str(folder), "--out", str(tmp_path / "out")]) == 5
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert 'pip install "vq-prior[export]"' in lines[1]
    assert not (tmp_path / "out").exists()


def test_what_is_in_its_folder_is_finished_or_in_the_way(tmp_path: Path, capsys: Any) -> None:
    model, out = codec("ema"), tmp_path / "out"
    folder = saved(model, tmp_path / "codec")
    with torch.no_grad():
        next(model.decoder.parameters()).add_(1)
    tuned = saved(model, tmp_path / "tuned")

    def run(source: Path, *more: str) -> tuple[int, str]:
        code = main(["export", "--codec", str(source), "--out", str(out), "--format", "torch", *more])
        said = capsys.readouterr()
        return code, said.out + said.err

    def state() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir()}

    assert run(folder)[0] == 0
    first = state()
    assert run(folder) == (0, f"{out} is finished; nothing to do\n")
    (out / "export.json").write_bytes(first["export.json"].replace(b'"torch"', b'"onnx"'))  # as of the other format
    write_manifest(out)
    other = state()
    code, said = run(folder)
    assert (code, "holds another export (format onnx -> torch)" in said, "--overwrite" in said) == (2, True, True)
    assert state() == other
    assert run(folder, "--overwrite")[0] == 0
    assert json.loads((out / "export.json").read_text())["format"] == "torch"
    code, said = run(tuned)
    assert (code, "decoder_id" in said, "codec_id" in said) == (2, True, False)  # the same codes, other pictures
    (out / "encode.pt2").write_bytes(b"damaged")
    code, said = run(folder)
    assert (code, "damaged" in said) == (2, True)
    assert run(tuned, "--overwrite")[0] == 0
    assert run(tuned)[1].endswith("nothing to do\n")
