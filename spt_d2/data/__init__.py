"""Dataset mappers, drawing of selection labels, VOC, data sets of one's own."""

try:
    import detectron2  # noqa: F401  asked for its ImportError alone
except ImportError as error:
    raise ImportError(
        "spt_d2.data needs detectron2, which is not on the package index under its own name.\n"
        "HINT: see INSTALL.md; spt_d2.ops and spt_d2.layers need torch only."
    ) from error

from spt_d2.data.dataset_mapper import SelectionDatasetMapper
from spt_d2.data.datasets import register_bdd100k, register_custom_datasets, register_shapes
from spt_d2.data.multi_label import MultiLabelDatasetMapper, build_mapper
from spt_d2.data.num_classes import setup_datasets, setup_lazy_datasets
from spt_d2.data.voc import register_voc_multilabel

register_shapes()
register_bdd100k()
register_voc_multilabel()

__all__ = [
    "MultiLabelDatasetMapper",
    "SelectionDatasetMapper",
    "build_mapper",
    "register_bdd100k",
    "register_custom_datasets",
    "register_shapes",
    "register_voc_multilabel",
    "setup_datasets",
    "setup_lazy_datasets",
]
