"""The backbones of the paper's tables and their dense twins (Sec. 3.1, App. B.2): the twin of configs/Backbones."""

from detectron2.config import LazyCall as L

from spt_d2.modeling import DAT, SPT, DynamicSwin, SparseViT, SvitGatedSwin, Swin

_tiny = dict(embed_dim=96, num_heads=[3, 6, 12, 24], drop_path_rate=0.2, out_features=["res2", "res3", "res4", "res5"])
_base = {**_tiny, "embed_dim": 128, "num_heads": [4, 8, 16, 32]}

# The paper adds four blocks to the third stage of Swin; T/12 goes without them.
spt_t = L(SPT)(**_tiny, depths=[2, 2, 10, 2])
spt_t12 = L(SPT)(**_tiny, depths=[2, 2, 6, 2])
spt_s = L(SPT)(**_tiny, depths=[2, 2, 22, 2])
spt_b = L(SPT)(**_base, depths=[2, 2, 22, 2])

# Swin at its published depths.
swin_t = L(Swin)(**_tiny, depths=[2, 2, 6, 2])
swin_s = L(Swin)(**_tiny, depths=[2, 2, 18, 2])
swin_b = L(Swin)(**_base, depths=[2, 2, 18, 2])

# Swin as deep as SPT.
swin_t16 = L(Swin)(**_tiny, depths=[2, 2, 10, 2])
swin_s28 = L(Swin)(**_tiny, depths=[2, 2, 22, 2])
swin_b28 = L(Swin)(**_base, depths=[2, 2, 22, 2])

# Peers. DynamicSwin at the places published.
dynamic_swin_t = L(DynamicSwin)(**_tiny, depths=[2, 2, 6, 2], predictor_blocks=[1, 2, 3])
dynamic_swin_s = L(DynamicSwin)(**_tiny, depths=[2, 2, 18, 2], predictor_blocks=[2, 4, 6])
dynamic_swin_b = L(DynamicSwin)(**_base, depths=[2, 2, 18, 2], predictor_blocks=[2, 4, 6])
# SparseViT at the ratios published for T; S has as many in stage 3, spread over its blocks.
sparse_vit_t = L(SparseViT)(**_tiny, depths=[2, 2, 6, 2])
sparse_vit_s = L(SparseViT)(**_tiny, depths=[2, 2, 18, 2])
# DAT at its published depths.
dat_t = L(DAT)(**_tiny, depths=[2, 2, 6, 2])
dat_s = L(DAT)(**_tiny, depths=[2, 2, 18, 2])
# SViT's gates, on the depths of Swin.
svit_gated_swin_t = L(SvitGatedSwin)(**_tiny, depths=[2, 2, 6, 2])
svit_gated_swin_s = L(SvitGatedSwin)(**_tiny, depths=[2, 2, 18, 2])

# The paper read literally, every value of it: arguments of SPT, and of the meta-architecture. The twin of
# Base-literal.yaml.
literal = dict(
    window_size=7,
    spa_stages=[3, 4],
    multi_scale=True,
    gate="per_block",
    gating="sigmoid",
    select="gate",
    token_budget=0,
    threshold=0.01,
    tau=1.0,
    noise="logistic",
    order="window",
    segment="shared",
    container_size=0,
    packing="containers",
    position="none",
    proj_tokens="all",
    ffn_tokens="all",
)
literal_loss = dict(loss_weight=0.01, loss_reduction="sum", pos_weight=1.0, supervise=True)
