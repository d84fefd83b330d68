import pytest

from vq_prior.core.errors import UsageError
from vq_prior.core.registry import Registry


@pytest.fixture
def quantizers():
    registry = Registry[type]("quantizer")
    registry.add("nearest", int)
    registry.add("ema", float)
    return registry


def test_entries_come_back_by_name_in_the_order_added(quantizers):
    assert quantizers["ema"] is float
    assert quantizers.names() == ("nearest", "ema")


def test_an_unknown_name_is_refused_with_what_exists_and_the_closest(quantizers):
    with pytest.raises(UsageError, match="unknown quantizer 'nerest', available: nearest, ema; did you mean nearest"):
        quantizers["nerest"]


def test_a_name_can_be_taken_once(quantizers):
    with pytest.raises(AssertionError, match="registered twice"):
        quantizers.add("ema", str)
