"""Layers whose weights' gradients, in bfloat16, are the same bits for any pieces of a batch and number of threads."""

import pytest
import torch
from torch import nn

from stage1_vqvae.blocks import Encoder, Sizes
from stage1_vqvae.fast.convolutions import AT_ONCE, LAST, ROWS, sum_in_parts

LAYERS = {
    "strided": (lambda: nn.Conv2d(64, 128, 4, stride=2, padding=1), (64, 16, 16)),
    "wide": (lambda: nn.Conv2d(64, 64, 3, padding=1), (64, 8, 8)),
    "1x1": (lambda: nn.Conv2d(56, 128, 1), (56, 8, 8)),
    "of pixels": (lambda: nn.Conv2d(3, 64, 4, stride=2, padding=1), (3, 32, 32)),
    "of grey pixels": (lambda: nn.Conv2d(1, 64, 4, stride=2, padding=1), (1, 28, 28)),
    "transposed": (lambda: nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1), (128, 8, 8)),
    "to pixels": (lambda: nn.ConvTranspose2d(64, 3, 4, stride=2, padding=1), (64, 16, 16)),
    "to grey pixels": (lambda: nn.ConvTranspose2d(64, 1, 4, stride=2, padding=1), (64, 14, 14)),
    "1-D": (lambda: nn.Conv1d(16, 32, 3, padding=1), (16, 64)),
    "1-D transposed": (lambda: nn.ConvTranspose1d(16, 8, 4, stride=2, padding=1), (16, 16)),
    "3-D": (lambda: nn.Conv3d(8, 16, 4, stride=2, padding=1), (8, 4, 8, 8)),
    "3-D transposed": (lambda: nn.ConvTranspose3d(16, 8, 4, stride=2, padding=1), (16, 2, 4, 4)),
    "norm": (lambda: nn.GroupNorm(8, 64), (64, 8, 8)),
    "1-D norm": (lambda: nn.GroupNorm(8, 64), (64, 8)),
    "3-D norm": (lambda: nn.GroupNorm(4, 8), (8, 2, 4, 4)),
}


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def channels_innermost(x):
    """The same numbers; the strides of one channel are those of torch's own memory format."""
    last = LAST.get(x.dim() - 2)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    return x if last is None else torch.empty_like(x, memory_format=last).copy_(x)


def layer_and_rows(name, num_rows, *, channels_last):
    generator = torch.Generator().manual_seed(0)
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make(), torch.randn(num_rows, *shape, generator=generator)
    sum_in_parts(layer)
    return layer, channels_innermost(x) if channels_last else x, generator


def gradients(layer, x, wanted, pieces, precision="bfloat16"):
    """Gradients of the parameters, summed over pieces in the order of a tree, and of the input."""
    found, of_input = [], []
    for part, y_wanted in zip(x.chunk(pieces), wanted.chunk(pieces), strict=True):
        layer.zero_grad()
        part = part.detach().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            y = layer(part)
        y.backward(y_wanted.to(y.dtype))
        found.append([parameter.grad.clone() for parameter in layer.parameters()])
        of_input.append(part.grad)
    while len(found) > 1:
        found = [[a + b for a, b in zip(*two, strict=True)] for two in zip(found[::2], found[1::2], strict=True)]
    return [*found[0], torch.cat(of_input)]


@pytest.mark.one_of
@pytest.mark.parametrize("name", LAYERS)
def test_pieces_and_threads_give_the_bits_of_one_batch(name):
    layer, x, generator = layer_and_rows(name, 4 * ROWS, channels_last=True)  # as training has them
    for _ in range(8 if "grey" in name else 1):  # another kernel's sums round differently once in thousands of numbers
        wanted = channels_innermost(torch.randn(layer(x).shape, generator=generator))
        torch.set_num_threads(1)
        one = gradients(layer, x, wanted, 1)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for pieces in (1, 2, 4):
                for ours, theirs in zip(gradients(layer, x, wanted, pieces), one, strict=True):
                    assert torch.equal(ours, theirs), (threads, pieces)


def test_a_large_batch_has_the_bits_of_its_pieces():
    layer, x, generator = layer_and_rows("1x1", 16 * ROWS, channels_last=True)
    wanted = torch.randn(layer(x).shape, generator=generator)
    assert len(x) > AT_ONCE
    whole, pieces = (gradients(layer, x, wanted, n) for n in (1, 8))
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize("num_rows", [1, ROWS - 1, ROWS, 2 * ROWS + 3])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_torch(name, num_rows, channels_last):
    layer, x, generator = layer_and_rows(name, num_rows, channels_last=channels_last)
    wanted = torch.randn(layer(x).shape, generator=generator)
    ours = gradients(layer, x, wanted, 1)
    plain = LAYERS[name][0]()
    assert isinstance(layer, type(plain))
    plain.load_state_dict(layer.state_dict())
    for mine, theirs in zip(ours, gradients(plain, x, wanted, 1, "float32"), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() <= 0.01 * theirs.norm()  # bfloat16 has 8 bits


def test_frozen_weights_get_no_gradient_and_the_input_does():
    layer, x, _ = layer_and_rows("wide", ROWS, channels_last=True)
    layer.requires_grad_(False)
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_a_whole_encoder_in_pieces():
    sizes = Sizes(rank=2, channels=3, strides=((2, 2), (2, 2)), width=32, hidden=16, num_blocks=1, code_dim=8)
    torch.manual_seed(0)
    encoder = Encoder(sizes)
    nn.init.normal_(encoder.blocks[0].conv_out.weight)
    sum_in_parts(encoder)
    shapes = ((4 * ROWS, 16, 16, 3), (4 * ROWS, 4, 4, 8))
    x, wanted = (torch.randn(shape).movedim(-1, 1) for shape in shapes)
    whole, pieces = (gradients(encoder, x, wanted, n) for n in (1, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_a_model_that_trains_computes_and_keeps_what_it_did():
    sizes = Sizes(rank=2, channels=3, strides=((2, 2),), width=16, hidden=16, num_blocks=1, code_dim=4, attention=False)
    encoder, x = Encoder(sizes), torch.randn(3, 3, 8, 8)
    before, state = encoder(x), {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    sum_in_parts(encoder)
    sum_in_parts(encoder)  # a second time changes nothing
    assert not {type(layer) for layer in encoder.modules()} & {nn.Conv2d, nn.GroupNorm}
    assert torch.equal(encoder(x), before)
    assert encoder.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
