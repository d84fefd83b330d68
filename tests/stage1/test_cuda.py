"""What a GPU does in another way than a CPU: the lookup's kernel, replayed networks, float32 that is float32."""

from pathlib import Path

import numpy as np
import pytest
import torch

from stage1_vqvae.fast import graphs
from stage1_vqvae.model import VQVAE, load_codec
from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.quantizers import lookup
from stage1_vqvae.settings import ModelSettings, TrainVQVAE
from stage1_vqvae.train import train_vqvae

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def tiny(out: Path, **changes: object) -> TrainVQVAE:
    return TrainVQVAE(
        "digits",
        out,
        **{"steps": 12, "batch_size": 64, "precision": "fp32", "warmup_steps": 2, "image_size": "16"}
        | {"model": ModelSettings(width=32, num_residual_blocks=1, downsampling=4)}
        | {"quantizer": QuantizerSettings(num_codes=32, code_dim=4)}
        | changes,
    )


@pytest.mark.parametrize("with_kernel", [True, False])
@pytest.mark.parametrize(
    ("N", "D", "K"), [(1000, 64, 512), (777, 8, 1025), (130, 3, 7), (65, 128, 70), (40, 200, 33), (1, 1, 1), (0, 4, 5)]
)
def test_lookup_finds_the_first_nearest(
    monkeypatch: pytest.MonkeyPatch, N: int, D: int, K: int, with_kernel: bool
) -> None:
    assert lookup._kernel() is not None
    if not with_kernel:
        monkeypatch.setattr(lookup, "_kernel", lambda: None)
        monkeypatch.setattr(lookup, "TABLE_ELEMENTS", 100 * K)
    rng = np.random.default_rng(0)
    # small whole numbers: every product and sum is exact, so ties are true ties
    whole = [torch.from_numpy(rng.integers(-3, 4, size).astype(np.float32)) for size in ((N, D), (K, D))]
    real = [torch.from_numpy(rng.standard_normal(size).astype(np.float32)) for size in ((N, D), (K, D))]
    for vectors, codebook in (whole, real):
        distances = (vectors.double()[:, None] - codebook.double()[None]).square().sum(-1)
        found = lookup.nearest_codes(vectors.cuda(), codebook.cuda())
        assert found.dtype == torch.int64
        assert torch.equal(found.cpu(), distances.argmin(1))


def test_lookup_holds_no_table() -> None:
    vectors, codebook = torch.randn(65_536, 64, device="cuda"), torch.randn(512, 64, device="cuda")
    lookup.nearest_codes(vectors[:1], codebook)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    lookup.nearest_codes(vectors, codebook)
    assert torch.cuda.max_memory_allocated() - before < 2e6


@pytest.mark.parametrize("name", ["ema", "nearest", "simvq", "fsq", "lfq", "gumbel"])
def test_replayed_networks_train_as_written_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    quantizer = QuantizerSettings(name=name, num_codes=None if name == "fsq" else 64)
    captured = []
    real = graphs._capture_networks

    def noted(*given: object) -> None:
        captured.append(given)
        real(*given)

    monkeypatch.setattr(graphs, "_capture_networks", noted)
    replayed = load_codec(train_vqvae(tiny(tmp_path / "replayed", quantizer=quantizer)))
    assert len(captured) == 1
    monkeypatch.setattr(graphs, "_capture_networks", lambda *_: None)
    written = load_codec(train_vqvae(tiny(tmp_path / "written", quantizer=quantizer)))
    for (key, first), second in zip(replayed.state_dict().items(), written.state_dict().values(), strict=True):
        if first.is_floating_point():
            assert float((first - second).norm() / second.norm().clamp_min(1e-6)) < 2e-3, key


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
