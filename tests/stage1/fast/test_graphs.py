"""Networks that a GPU replays train as those that are written down."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from stage1_vqvae.architecture import Architecture, VQVAEConfig
from stage1_vqvae.fast import graphs
from stage1_vqvae.model import VQVAE, load_codec
from stage1_vqvae.quantizer_settings import QuantizerSettings
from stage1_vqvae.settings import ModelSettings, TrainVQVAE
from stage1_vqvae.train import train_vqvae
from vq_prior.core.processes.runtime import Runtime


def captures(monkeypatch: pytest.MonkeyPatch, *, then: bool = True) -> list[tuple[object, ...]]:
    """Note each capture of the networks in the list that is returned; without `then` it is left out."""
    noted: list[tuple[object, ...]] = []
    real = graphs._capture_networks

    def note(*arguments: object) -> None:
        noted.append(arguments)
        if then:
            real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(graphs, "_capture_networks", note)
    return noted


def tiny(out: Path, name: str) -> TrainVQVAE:
    quantizer = QuantizerSettings(name=name, num_codes=None if name == "fsq" else 64)
    model = ModelSettings(width=32, num_residual_blocks=1, downsampling=4)
    rest = {"steps": 12, "batch_size": 64, "precision": "fp32", "warmup_steps": 2, "image_size": "16"}
    return TrainVQVAE("digits", out, model=model, quantizer=quantizer, **rest)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["ema", "nearest", "simvq", "fsq", "lfq", "gumbel"])
def test_replayed_networks_train_as_written_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with monkeypatch.context() as patch:
        noted = captures(patch)
        replayed = load_codec(train_vqvae(tiny(tmp_path / "replayed", name)))
        assert len(noted) == 1
    captures(monkeypatch, then=False)
    written = load_codec(train_vqvae(tiny(tmp_path / "written", name)))
    for (key, first), second in zip(replayed.state_dict().items(), written.state_dict().values(), strict=True):
        if first.is_floating_point():
            assert float((first - second).norm() / second.norm().clamp_min(1e-6)) < 2e-3, key


WRITTEN = {"device": "cpu"}, {"num_processes": 2}, {"reproducible": True}, {"gradient_accumulation_steps": 2}


@pytest.mark.parametrize("changes", [{}, *WRITTEN], ids=str)
def test_only_one_process_with_whole_steps_on_a_gpu_replays_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    noted = captures(monkeypatch, then=False)
    runtime = SimpleNamespace(device=torch.device(changes.get("device", "cuda")), wrap=lambda model: model)
    runtime.num_processes, runtime.reproducible = changes.get("num_processes", 1), changes.get("reproducible", False)
    pieces = changes.get("gradient_accumulation_steps", 1)
    settings = replace(tiny(tmp_path, "ema"), gradient_accumulation_steps=pieces)
    model = VQVAE(VQVAEConfig(Architecture(1, (8, 8), 4, 8, 4, 1, QuantizerSettings(num_codes=4, code_dim=2)))).eval()
    assert graphs.trained_module(settings, cast(Runtime, runtime), model).training
    assert noted == ([(model, runtime, 64)] if changes == {} else [])
