"""For all tests of layers."""

import pytest

from spt_d2.ops import linear


@pytest.fixture(autouse=True)
def products_as_if_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers of tests are small: their products at inference go the way of large ones."""
    monkeypatch.setattr(linear, "_LEAST_WORK", 1)
    monkeypatch.setattr(linear, "_LEAST_WORK_GELU", 1)
