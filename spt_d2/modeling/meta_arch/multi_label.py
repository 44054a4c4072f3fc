"""Multi-label classification: which classes an image shows, any number of them (Sec. 4.3; Tables 5, 7, Fig. 4)."""

import logging
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from spt_d2.modeling.meta_arch.supervision import SelectionSupervision
from spt_d2.ops.multi_label import multi_label_loss, pool_valid_tokens
from spt_d2.ops.selection import valid_tokens

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class MultiLabelClassifier(nn.Module):
    """
    One feature map of a backbone, its mean over the tokens that are no padding, and one linear layer.

    The paper names no head; this is the usual one of hierarchical transformers. Any Detectron2 backbone will do.

    Args:
        backbone: of which one feature map is read. Maps that nobody reads have norms without a gradient, which
            distributed training takes for an error: build the backbone with this one only.
        num_classes: K.
        feature: name of the map.
        pixel_mean, pixel_std: per channel, in units of the images.

    Raises:
        ValueError: a feature that the backbone does not have.
    """

    pixel_mean: Tensor

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        num_classes: int,
        feature: str = "res5",
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ):
        super().__init__()
        shapes = backbone.output_shape()
        if feature not in shapes:
            raise ValueError(
                f"{type(self).__name__}(feature=) expects one of the backbone's maps, {sorted(shapes)} "
                f"(MODEL.MULTI_LABEL.FEATURE). Got {feature!r}."
            )
        unread = sorted(name for name in shapes if name != feature)
        if unread:
            logger.warning(
                "%s reads %r alone: what the backbone has for %s gets no gradient, an error in distributed training.\n"
                "HINT: OUT_FEATURES ['%s'] of the backbone's node, such as MODEL.SPT.OUT_FEATURES.",
                type(self).__name__, feature, unread, feature,
            )  # fmt: skip
        self.backbone, self.num_classes, self.feature = backbone, num_classes, feature
        self.stride = shapes[feature].stride
        # Not "head": so Swin's own checkpoints call the layer of their 1,000 classes.
        self.label_predictor = nn.Linear(shapes[feature].channels, num_classes)
        nn.init.trunc_normal_(self.label_predictor.weight, std=0.02)
        nn.init.zeros_(self.label_predictor.bias)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            "backbone": build_backbone(cfg),
            "num_classes": cfg.MODEL.MULTI_LABEL.NUM_CLASSES,
            "feature": cfg.MODEL.MULTI_LABEL.FEATURE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """
        Args:
            batched_inputs: each with ``image``, (channels, h, w); in training with ``labels`` and ``labels_ignored``
                as :class:`~spt_d2.data.MultiLabelDatasetMapper` makes them.

        Returns:
            in training the losses by name; else per image ``logits`` and ``scores``, (K,) float32: what an evaluator
            ranks by, for probabilities close to 1 are equal in float32, and the probabilities.
        """
        images = self.preprocess_image(batched_inputs)
        logits = self.classify(self.backbone(images.tensor), images.image_sizes)
        return self.classification_losses(logits, batched_inputs) if self.training else self.outputs(logits)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Normalised images, padded to one size that the backbone takes."""
        images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
        return ImageList.from_tensors(
            images, self.backbone.size_divisibility, padding_constraints=self.backbone.padding_constraints
        )

    def classify(self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]]) -> Tensor:
        """
        Args:
            features: the backbone's maps, ``{name: (B, C, H, W)}``.
            image_sizes: (height, width) in pixels of each image, without padding.

        Returns:
            (B, K) logits.
        """
        x = features[self.feature]
        valid = valid_tokens(image_sizes, x.shape[-2:], self.stride, x.shape[0], x.device)
        return self.label_predictor(pool_valid_tokens(x, valid))

    def classification_losses(self, logits: Tensor, batched_inputs: list[dict]) -> dict[str, Tensor]:
        """
        Raises:
            ValueError: an input without labels, or with those of another number of classes.
        """
        for given in batched_inputs:
            found = {key: tuple(given[key].shape) for key in ("labels", "labels_ignored") if key in given}
            if list(found.values()) != [(self.num_classes,)] * 2:
                raise ValueError(
                    f"{type(self).__name__} expects 'labels' and 'labels_ignored' of shape {(self.num_classes,)} in "
                    f"every training input. Got {found or 'none'}.\n"
                    "HINT: use MultiLabelDatasetMapper with the model's number of classes "
                    "(MODEL.MULTI_LABEL.NUM_CLASSES), on a data set with annotations."
                )
        labels, ignored = (
            torch.stack([given[key] for given in batched_inputs]).to(self.device, non_blocking=True)
            for key in ("labels", "labels_ignored")
        )
        return {"loss_multi_label": multi_label_loss(logits, labels, ignored)}

    def outputs(self, logits: Tensor) -> list[dict]:
        """One dict per image, from (B, K) logits."""
        logits = logits.float()
        return [{"logits": row, "scores": score} for row, score in zip(logits, logits.sigmoid())]


@META_ARCH_REGISTRY.register()
class SelectionMultiLabelClassifier(SelectionSupervision, MultiLabelClassifier):
    """:class:`MultiLabelClassifier` with selection loss and, on request, selections in its outputs."""

    @configurable
    def __init__(self, **kwargs):
        """Args: see :class:`SelectionSupervision` and :class:`MultiLabelClassifier`."""
        super().__init__(**kwargs)

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """As :meth:`MultiLabelClassifier.forward`; training inputs carry ``selection_labels`` too."""
        images = self.preprocess_image(batched_inputs)
        features, selections, labels = self.select_features(images, batched_inputs)
        logits = self.classify(features, images.image_sizes)
        if self.training:
            losses = self.classification_losses(logits, batched_inputs)
            return {**losses, **self.selection_losses(selections, labels)}
        return self.attach_selections(self.outputs(logits), selections, images)
