"""Memory that is not written is poison in tests of the operations."""

from collections.abc import Iterator

import pytest
import torch

_FACTORIES = ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"))


def _poison(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point():
        # Detached: torch's checkpointing makes a leaf, into which nothing is written that would be recorded.
        tensor.detach().fill_(float("nan"))
        return tensor
    return tensor.fill_(True) if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).max // 2)


def _poisoned(factory):
    return lambda *args, **kwargs: _poison(factory(*args, **kwargs))


@pytest.fixture(autouse=True, scope="package")
def poisoned_empty() -> Iterator[None]:
    """``torch.empty`` and its like give NaN, or a number no index may have: whoever reads it before writing, fails."""
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in _FACTORIES:
            patch.setattr(owner, name, _poisoned(getattr(owner, name)))
        yield
