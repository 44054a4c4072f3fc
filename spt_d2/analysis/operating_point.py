"""Operating points of one trained model: how many tokens it keeps is a choice at inference, and is made here."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import nn

from spt_d2.layers.block import SelectPackBlock

# In the order in which they are evaluated.
KINDS = ("configured", "threshold", "keep_ratio", "token_budget")


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """
    A change of the keep rule at inference; the weights stay.

    Attributes:
        kind: ``configured`` (as trained: no change), ``threshold`` (of the gate's rule), ``keep_ratio`` (the tokens of
            highest score, the same share of every image: ``SELECT topk``) or ``token_budget`` (as trained, and then no
            more than so many tokens per image and block).
        value: of the kind; a probability, a fraction in (0, 1], or a number of tokens. None for ``configured``.

    Raises:
        ValueError: an unknown kind, a value where none belongs, or none where one does.
    """

    kind: str
    value: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"OperatingPoint(kind=) expects one of {KINDS}. Got {self.kind!r}.")
        if (self.kind == "configured") != (self.value is None):
            raise ValueError(f"OperatingPoint(value=) expects a value for all kinds but 'configured'. Got {self}.")
        if self.kind == "token_budget" and (self.value is None or self.value != int(self.value) or self.value < 1):
            raise ValueError(f"OperatingPoint(value=) expects at least 1 token as a budget. Got {self.value}.")

    @property
    def name(self) -> str:
        """Such as ``threshold 0.05``."""
        return self.kind if self.value is None else f"{self.kind} {self.value:g}"

    def changes(self) -> dict[str, Any]:
        """
        Fields of :class:`~spt_d2.layers.select_pack_attention.SelectPackOptions` that change.

        Thresholds and ratios lift a budget, so that each kind moves along one axis.
        """
        if self.kind == "threshold":
            return {"select": "gate", "threshold": self.value, "token_budget": 0}
        if self.kind == "keep_ratio":
            return {"select": "topk", "keep_ratio": self.value, "token_budget": 0}
        if self.kind == "token_budget":
            return {"token_budget": int(self.value or 0)}
        return {}


@contextlib.contextmanager
def operating_point(model: nn.Module, point: OperatingPoint) -> Iterator[None]:
    """
    Hold a model at an operating point, and put it back.

    Args:
        model: whose Select and Pack blocks, wherever they are, follow the point.

    Raises:
        ValueError: the model has no such block, the point is out of range, or it is a threshold under
            ``GATING centred``: there the factor on the features is centred at the threshold, and would move along.
    """
    blocks = [module for module in model.modules() if isinstance(module, SelectPackBlock)]
    if not blocks:
        raise ValueError(
            f"operating_point(model=) expects Select and Pack blocks. Got none in {type(model).__name__}: a dense "
            "backbone keeps every token, and one that selects by another rule has its own keys for it."
        )
    if point.kind == "threshold" and any(block.options.gating == "centred" for block in blocks):
        raise ValueError(
            "operating_point(point=) expects no threshold under gating='centred': the features would change with it.\n"
            "HINT: keep_ratio and token_budget leave them alone."
        )
    before = [block.options for block in blocks]
    changes = point.changes()
    changed = [dataclasses.replace(options, **changes) for options in before]
    try:
        for block, options in zip(blocks, changed):
            block.options = options
        yield
    finally:
        for block, options in zip(blocks, before):
            block.options = options
