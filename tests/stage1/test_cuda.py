"""What a GPU does in another way than a CPU: runs that stop and go on, float32 that is float32."""

from pathlib import Path

import pytest
import torch

from stage1_vqvae.model import VQVAE, load_codec
from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.settings import ModelSettings, TrainVQVAE
from stage1_vqvae.train import train_vqvae

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def tiny(out: Path, steps: int = 12) -> TrainVQVAE:
    model = ModelSettings(width=32, num_residual_blocks=1, downsampling=4)
    quantizer = QuantizerSettings(num_codes=32, code_dim=4)
    rest = {"batch_size": 64, "precision": "fp32", "warmup_steps": 2, "image_size": "16"}
    return TrainVQVAE("digits", out, steps=steps, model=model, quantizer=quantizer, **rest)


def test_a_stopped_run_on_a_gpu_goes_on(tmp_path: Path) -> None:
    train_vqvae(tiny(tmp_path / "run", steps=6))
    train_vqvae(tiny(tmp_path / "run", steps=12))
    assert load_codec(tmp_path / "run" / "vqvae").num_parameters()


def test_codes_of_a_gpu_are_those_of_the_host(tmp_path: Path) -> None:
    codec = load_codec(train_vqvae(tiny(tmp_path / "run")))
    images = torch.rand(256, *(codec.spec.channels, *codec.spec.shape)) * 2 - 1
    on_host, drawn = codec.encode(images)[0], codec.decode(codec.encode(images))
    former = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # as cudnn has it where nothing was set
    try:
        there: VQVAE = codec.to("cuda")
        assert float((there.encode(images.cuda())[0].cpu() == on_host).double().mean()) >= 0.999
        assert float((there.decode((on_host.cuda(),)).cpu() - drawn).abs().max()) < 1e-5
        assert torch.backends.cudnn.conv.fp32_precision == "tf32"
    finally:
        torch.backends.cudnn.conv.fp32_precision = former
