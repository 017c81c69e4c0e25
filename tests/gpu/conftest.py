"""The fixture of all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from devices import DEVICES, entered


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which device ``cuda`` is during the test."""
    with entered(request.param):
        yield request.param
