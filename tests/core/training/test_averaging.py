import numpy as np
import torch
from torch import nn

from vq_prior.core.training.averaging import WeightAverage


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 2))
        self.register_buffer("codebook", torch.zeros(4))
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))


def trajectory(num_steps):
    """The weights after each step, and a module that goes through them."""
    generator = np.random.default_rng(0)
    return [generator.normal(size=(3, 2)).astype(np.float32) for _ in range(num_steps)]


def set_weights(module, values, step):
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(values))
        module.codebook.fill_(step)
        module.count.fill_(step)


def test_the_average_equals_numpy():
    module = Net()
    average, expected = WeightAverage(module, decay=0.6, copied=("codebook",)), np.zeros((3, 2))
    for step, values in enumerate(trajectory(20), start=1):
        set_weights(module, values, step)
        average.update(module, step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * values
    np.testing.assert_allclose(average.tensors["weight"].numpy(), expected, atol=1e-6)  # float32 against float64
    assert average.tensors["codebook"].tolist() == [20.0] * 4
    assert average.tensors["count"].tolist() == [20, 20]


def test_without_copied_names_float_buffers_are_averaged_and_integers_copied():
    module = Net()
    average = WeightAverage(module, decay=0.5)
    set_weights(module, np.ones((3, 2), dtype=np.float32), 10)
    average.update(module, 100)
    assert average.tensors["codebook"].tolist() == [5.0] * 4
    assert average.tensors["count"].tolist() == [10, 10]


def test_the_average_of_constant_weights_is_those_weights():
    module = Net()
    set_weights(module, trajectory(1)[0], 1)
    average = WeightAverage(module, decay=0.99)
    for step in range(1, 50):
        average.update(module, step)
    assert torch.equal(average.tensors["weight"], module.weight)


def test_a_loaded_average_continues_bit_by_bit():
    module, resumed_module = Net(), Net()
    average = WeightAverage(module, decay=0.9)
    saved = {}
    for step, values in enumerate(trajectory(10), start=1):
        set_weights(module, values, step)
        average.update(module, step)
        if step == 5:
            saved = {name: tensor.clone() for name, tensor in average.tensors.items()}
    resumed = WeightAverage(resumed_module, decay=0.9)
    resumed.load(saved)
    for step, values in list(enumerate(trajectory(10), start=1))[5:]:
        set_weights(resumed_module, values, step)
        resumed.update(resumed_module, step)
    assert torch.equal(average.tensors["weight"], resumed.tensors["weight"])


def test_the_trained_weights_come_back_after_the_block_even_on_an_error():
    module = Net()
    average = WeightAverage(module, decay=0.9)
    set_weights(module, trajectory(1)[0], 7)
    trained = module.weight.detach().clone()
    try:
        with average.swapped_into(module):
            assert torch.equal(module.weight, torch.zeros(3, 2))
            raise RuntimeError
    except RuntimeError:
        pass
    assert torch.equal(module.weight, trained)
    assert torch.equal(average.tensors["weight"], torch.zeros(3, 2))
