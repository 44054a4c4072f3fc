"""A frozen dense Swin to learn from, which is no part of the model that it teaches."""

import torch
from torch import Tensor

from spt_d2.modeling.backbone.swin import Swin
from spt_d2.weights import detect_layout, fit_to_model, read_weights


class Teacher:
    """
    The last map of a dense Swin whose weights come from a file.

    Not a module, so that no state dict, optimizer, average of weights, wrapper for several processes or count of
    parameters ever sees it. It is built when first asked, from which on the file must be there: a trained model is used
    without it.

    Args:
        weights: file with a Swin backbone of the same sizes, in any layout of :data:`spt_d2.weights.LAYOUTS`; a
            classifier's last norm is taken for that of the last map.
        **swin: arguments of :class:`Swin`.
    """

    def __init__(self, weights: str, **swin):
        self.weights, self.swin = weights, swin
        self._network: Swin | None = None

    @torch.no_grad()
    def last_map(self, x: Tensor) -> Tensor:
        """
        (B, in_channels, height, width) images to the (B, C, H, W) map of the last stage, without a gradient.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no Swin backbone in it, or one of other sizes.
        """
        if self._network is None:
            self._network = self._build()
        (features,) = self._network.to(x).forward(x).values()
        return features

    def _build(self) -> Swin:
        # No random number is drawn: a run that goes on where it was stopped stays the run it would have been.
        with torch.device("meta"):
            network = Swin(**self.swin)
        weights = read_weights(self.weights)
        wanted = network.state_dict()
        layout = detect_layout(weights)
        if layout is None:
            raise ValueError(f"Teacher(weights=) expects the weights of a Swin backbone. Got none in {self.weights}.")
        fitted, report = fit_to_model(weights, wanted)
        fitted = {name: fitted[name] for name in wanted if name in fitted}
        # A classifier's only norm follows its last stage.
        own_norm, norm = f"norm{len(self.swin['depths']) - 1}.", f"{layout.prefix}norm."
        absent = [name for name in wanted if name.startswith(own_norm) and name not in fitted]
        of_classifier = {name: weights.get(name.replace(own_norm, norm)) for name in absent}
        of_classifier = {name: value for name, value in of_classifier.items() if value is not None}
        entries = [] if report is None else report.entries
        changed = [e.name for e in entries if e.loud or e.action in ("added", "resized", "new")]
        changed = [name for name in changed if name not in of_classifier]
        if changed:
            raise ValueError(
                f"Teacher(weights=) expects a dense Swin of the student's sizes. Got another in {self.weights}.\n"
                f"  not as here: {', '.join(changed[:4])}{', ...' if changed[4:] else ''}"
            )
        fitted.update(of_classifier)
        network.load_state_dict(fitted, assign=True)
        return network.requires_grad_(False).eval()
