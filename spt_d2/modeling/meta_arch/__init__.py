"""Detectron2's meta-architectures with a selection loss."""

from spt_d2.modeling.meta_arch.detectors import SelectionGeneralizedRCNN, SelectionPanopticFPN, SelectionRetinaNet

__all__ = ["SelectionGeneralizedRCNN", "SelectionPanopticFPN", "SelectionRetinaNet"]
