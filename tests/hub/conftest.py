"""Hubs for the tests: one that takes files inside commits, one that wants git-lfs, and one of each."""

from collections.abc import Iterator

import pytest
from hub.server import LoopbackHub


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """A Hub that takes every file inside the commit; what it could not do fails the test."""
    with LoopbackHub() as server:
        yield server
    assert server.errors == []


@pytest.fixture
def lfs_hub() -> Iterator[LoopbackHub]:
    """A Hub that wants binary files through git-lfs; what it could not do fails the test."""
    with LoopbackHub(upload_mode="lfs") as server:
        yield server
    assert server.errors == []


@pytest.fixture(params=["regular", "lfs"])
def either_hub(request: pytest.FixtureRequest) -> Iterator[LoopbackHub]:
    """A Hub of each kind in turn."""
    with LoopbackHub(upload_mode=request.param) as server:
        yield server
    assert server.errors == []
