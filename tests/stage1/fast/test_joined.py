"""Layers joined for the dump: the same bits, nothing left behind, and no use where a bit differs."""

from dataclasses import replace

import pytest
import torch

from stage1_vqvae.architecture import Architecture, VQVAEConfig
from stage1_vqvae.fast import joined
from stage1_vqvae.fast.joined import JoinedSonnetEncoder, joined_layers
from stage1_vqvae.model import VQVAE
from stage1_vqvae.quantizer_settings import QuantizerSettings

NOTEBOOK = Architecture(3, (32, 32), 4, 128, 32, 2, QuantizerSettings(num_codes=512, code_dim=64), network="sonnet")
ODD = Architecture(1, (30, 33), 8, 24, 12, 3, QuantizerSettings(num_codes=16, code_dim=4), network="sonnet")
has_it = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_convolution_pointwise"), reason="this PyTorch has no such operation"
)


@pytest.fixture(autouse=True)
def _no_verdicts(monkeypatch):
    monkeypatch.setattr(joined, "VERDICTS", {})


def codec(architecture):
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(architecture)).eval()


def pictures(model, count):
    shape = (count, model.spec.channels, *model.spec.shape)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.fixture
def calls(monkeypatch):
    """Count the layers that were joined."""
    seen = []
    whole = JoinedSonnetEncoder._convolved

    def counted(self, x, layer, then):
        seen.append(then)
        return whole(self, x, layer, then)

    monkeypatch.setattr(JoinedSonnetEncoder, "_convolved", counted)
    return seen


@has_it
@pytest.mark.parametrize("architecture", [NOTEBOOK, ODD], ids=["notebook", "odd sizes"])
@pytest.mark.parametrize("threads", [1, 2])
def test_codes_and_latents_keep_their_bits(architecture, threads, calls):
    torch.set_num_threads(threads)
    try:
        model = codec(architecture)
        images = pictures(model, 70)
        latents, (codes,) = model.encode_latents(images), model.encode(images)
        with joined_layers(model) as faster:
            assert torch.get_num_threads() == threads
            calls.clear()
            assert torch.equal(model.encode_latents(images), latents)
            assert torch.equal(model.encode(images)[0], codes)
            assert bool(calls) == faster
        assert faster or architecture is ODD  # where it pays, it must not be lost unnoticed
    finally:
        torch.set_num_threads(1)


@has_it
def test_other_weights_count_once_it_is_closed(calls):
    model = codec(NOTEBOOK)
    images = pictures(model, 3)
    with joined_layers(model):
        before = model.encode_latents(images)
        calls.clear()
        model(images).images.sum().backward()  # with gradients the plain layers work
        assert not calls
        assert model.encoder.out.weight.grad is not None
    with torch.no_grad():
        model.encoder.out.weight.add_(1)
    after = model.encode_latents(images)
    assert not calls
    assert not torch.equal(after, before)
    with joined_layers(model):
        assert torch.equal(model.encode_latents(images), after)


@has_it
@pytest.mark.parametrize("fault", ["one bit", "refused"])
def test_where_a_bit_differs_the_plain_layers_work(fault, monkeypatch):
    model = codec(NOTEBOOK)
    images = pictures(model, 3)
    latents, whole = model.encode_latents(images), JoinedSonnetEncoder.__call__

    def wrong(self, x):
        if fault == "refused":
            raise RuntimeError("no such convolution here")
        out = whole(self, x)
        out[-1, -1, -1, -1] = torch.nextafter(out[-1, -1, -1, -1], torch.tensor(9.0))
        return out

    monkeypatch.setattr(JoinedSonnetEncoder, "__call__", wrong)
    with joined_layers(model) as faster:
        assert not faster
        assert torch.equal(model.encode_latents(images), latents)
    assert model.encoder.joined is None


def test_other_networks_are_left_alone():
    with joined_layers(codec(replace(NOTEBOOK, network="residual"))) as faster:
        assert not faster
