"""Backbones whose first parts may be frozen (``MODEL.BACKBONE.FREEZE_AT``)."""

from detectron2.modeling import Backbone
from torch import nn


class FreezableBackbone(Backbone):
    """A backbone that names its frozen modules; they take no gradient, and stay in evaluation mode."""

    def _frozen_modules(self) -> list[nn.Module]:
        raise NotImplementedError

    def _freeze(self) -> None:
        for module in self._frozen_modules():
            module.eval()
            for parameter in module.parameters():
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "FreezableBackbone":
        """Frozen modules stay in evaluation mode: no dropout, no noise."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self
