"""Multi-label classification over the Select and Pack Transformer (SPT-T): the twin of Base-MultiLabel.yaml."""

from detectron2.config import LazyCall as L

from spt_d2.modeling import SPT, SelectionMultiLabelClassifier

model = L(SelectionMultiLabelClassifier)(
    backbone=L(SPT)(
        embed_dim=96,
        depths=[2, 2, 10, 2],
        num_heads=[3, 6, 12, 24],
        drop_path_rate=0.2,
        # The map that feature reads; norms of others would get no gradient.
        out_features=["res5"],
    ),
    num_classes=20,
    feature="res5",
    # RGB, ImageNet statistics, in units of 0-255.
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    return_selections=True,
)
