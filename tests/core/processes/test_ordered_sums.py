import pytest
import torch

from vq_prior.core.processes.ordered_sums import TreeSum, tree_sum


@pytest.mark.parametrize("number", range(1, 10))
def test_parts_are_added_in_the_order_of_a_tree_sum(number):
    parts = torch.randn(number, 50, generator=torch.Generator().manual_seed(0))
    tree = TreeSum()
    assert not tree
    for part in parts:
        tree.add(part)
    assert tree
    assert torch.equal(tree_sum(parts), tree.total())


def test_a_sum_of_sums_is_that_of_all_where_each_is_of_the_same_power_of_two():
    parts = torch.randn(16, 50, generator=torch.Generator().manual_seed(0))
    for size in (1, 2, 4, 8):
        assert torch.equal(tree_sum(torch.stack([tree_sum(some) for some in parts.split(size)])), tree_sum(parts))
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = one_by_one + part
    assert not torch.equal(one_by_one, tree_sum(parts))
