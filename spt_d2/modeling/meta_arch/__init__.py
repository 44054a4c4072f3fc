"""Detectron2's meta-architectures with a selection loss, and multi-label classification."""

from spt_d2.modeling.meta_arch.detectors import SelectionGeneralizedRCNN, SelectionPanopticFPN, SelectionRetinaNet
from spt_d2.modeling.meta_arch.multi_label import MultiLabelClassifier, SelectionMultiLabelClassifier

__all__ = [
    "MultiLabelClassifier",
    "SelectionGeneralizedRCNN",
    "SelectionMultiLabelClassifier",
    "SelectionPanopticFPN",
    "SelectionRetinaNet",
]
