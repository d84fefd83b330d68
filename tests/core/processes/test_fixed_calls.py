import pytest
import torch
from torch import nn

from vq_prior.core.processes.fixed_calls import map_rows, map_rows_frozen, rows_per_call


@pytest.mark.parametrize("total", [1, 7, 8, 9, 24])
def test_every_call_has_the_same_row_count_and_no_row_is_lost(total):
    seen = []

    def double(x, y):
        seen.append(x.shape[0])
        return x * 2 + y

    x, y = torch.arange(total * 3.0).view(total, 3), torch.ones(total, 3)
    assert torch.equal(map_rows(double, 8, x, y), x * 2 + 1)
    assert seen == [8] * (-(-total // 8))


def test_a_tuple_stays_a_tuple():
    first, second = map_rows(lambda x: (x, x.long()), 4, torch.arange(6.0))
    assert torch.equal(first, torch.arange(6.0))
    assert torch.equal(second, torch.arange(6))


def test_frozen_calls_leave_every_part_in_the_mode_it_was_in():
    network = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5), nn.Identity()))
    network[1].eval()
    before = [part.training for part in network.modules()]
    assert torch.equal(map_rows_frozen(network, network, 2, torch.ones(3, 4)), torch.ones(3, 4))
    assert [part.training for part in network.modules()] == before
    with pytest.raises(RuntimeError):
        map_rows_frozen(network, lambda rows: rows @ rows, 2, torch.ones(3, 4))
    assert [part.training for part in network.modules()] == before == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("device", "pixels", "rows"),
    [
        ("cpu", 1, 64),
        ("cpu", 32**2, 64),
        ("cpu", 48 * 40, 32),
        ("cpu", 64**2, 16),
        ("cpu", 256**2, 1),
        ("cpu", 2**20, 1),
        ("cuda", 32**2, 128),
        ("cuda", 256**2, 64),
        ("cuda", 1024**2, 4),
    ],
)
def test_calls_hold_fewer_of_larger_pictures(device, pixels, rows):
    assert rows_per_call(torch.device(device), pixels) == rows


@torch.inference_mode()
def test_the_bits_of_a_row_do_not_depend_on_the_batch_it_came_in():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 16, 3, 1, 1), nn.Flatten(), nn.Linear(1024, 40)
    )
    images = torch.randn(37, 3, 16, 16)
    rows = rows_per_call(torch.device("cpu"), 2048)
    assert rows == 32
    whole = map_rows(network, rows, images)
    for batch_size in (1, 7, 20):
        pieces = [map_rows(network, rows, piece) for piece in images.split(batch_size)]
        assert torch.equal(torch.cat(pieces), whole)
