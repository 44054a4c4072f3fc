"""A plain vision transformer whose later blocks may select and pack: the method is not tied to Swin (Fig. 4)."""

import math
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from spt_d2.layers.block import Decision
from spt_d2.layers.global_block import GlobalBlock, GlobalSelectPackBlock
from spt_d2.layers.patch import PatchEmbed
from spt_d2.layers.select_pack_attention import SelectPackOptions
from spt_d2.layers.stage import run_block
from spt_d2.modeling.backbone.freezing import FreezableBackbone
from spt_d2.modeling.backbone.spt import select_pack_arguments, warn_unsupervised
from spt_d2.modeling.backbone.swin import init_weights
from spt_d2.ops.positions import resize_positions
from spt_d2.ops.selection import BlockSelection, valid_tokens

# Of every LayerNorm, as ViT's checkpoints were trained.
_NORM_EPS = 1e-6


class ViT(FreezableBackbone):
    """
    Vision Transformer (Dosovitskiy et al., 2021) with one map at the stride of its patches.

    There is no class token, which a map has no place for (as in ViTDet). Parameter names are those of the authors'
    successors: timm, MAE and Detectron2's ``ViT`` (:mod:`spt_d2.vit_weights`).

    The map is named as a hierarchical backbone's of that stride: ``res4`` at stride 16. The blocks are one stage, in
    selections number 1. Dense blocks attend to padding, as Detectron2's ``ViT`` does.

    Args:
        patch_size: stride, in pixels; a power of two.
        in_channels: of the image.
        embed_dim: C.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLP over C.
        qkv_bias: whether q, k, v have a bias.
        drop_rate: dropout of tokens after the patch embedding, of MLPs and projections.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        pretrain_image_size: pixels of the square images whose grid the positions are learned for; at another size they
            are resized.
        spa_blocks: indices from 0 of the blocks that select and pack; empty for a dense ViT. None: the last two thirds,
            for a gate needs features to judge by.
        freeze_at: 0 freezes nothing, 1 patches and positions, k the first k - 1 blocks too.
        use_checkpoint: recompute activations in the backward pass, block by block.
        segment: which kept tokens attend to each other; all of an image by default, as in a dense ViT.
        **select_pack: further fields of :class:`SelectPackOptions`. Odd blocks take the shifted order.
    """

    def __init__(
        self,
        *,
        patch_size: int = 16,
        in_channels: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        pretrain_image_size: int = 224,
        spa_blocks: Sequence[int] | None = None,
        freeze_at: int = 0,
        use_checkpoint: bool = False,
        segment: str = "image",
        **select_pack,
    ):
        super().__init__()
        if spa_blocks is None:
            spa_blocks = range(depth // 3, depth)
        self._check_arguments(patch_size, depth, pretrain_image_size, spa_blocks, freeze_at)
        self.spa_blocks = tuple(sorted(spa_blocks))
        self.options = SelectPackOptions(segment=segment, **select_pack)
        self.use_checkpoint = use_checkpoint
        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim, norm=False)
        self.pos_embed = nn.Parameter(torch.zeros(1, (pretrain_image_size // patch_size) ** 2, embed_dim))
        self.pos_drop = nn.Dropout(drop_rate)
        # On the CPU whatever the default device is: a model may be built on the meta device, to count or to shard it.
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            self._build_block(
                i,
                dim=embed_dim,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
                drop_path=rates[i],
            )
            for i in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = _NORM_EPS
        self.stride = patch_size
        name = f"res{int(math.log2(patch_size))}"
        self._out_features = [name]
        self._out_feature_strides = {name: patch_size}
        self._out_feature_channels = {name: embed_dim}
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(init_weights)
        self.freeze_at = freeze_at
        self._freeze()

    @staticmethod
    def _check_arguments(
        patch_size: int, depth: int, pretrain_image_size: int, spa_blocks: Sequence[int], freeze_at: int
    ) -> None:
        if patch_size < 2 or patch_size & (patch_size - 1):
            raise ValueError(f"patch_size expects a power of two above 1, in pixels. Got {patch_size}.")
        if depth < 1:
            raise ValueError(f"depth expects at least 1 block. Got {depth}.")
        if pretrain_image_size < patch_size or pretrain_image_size % patch_size:
            raise ValueError(
                f"pretrain_image_size expects a multiple of patch_size {patch_size}, in pixels. "
                f"Got {pretrain_image_size}."
            )
        if len(set(spa_blocks)) != len(spa_blocks) or not all(0 <= block < depth for block in spa_blocks):
            raise ValueError(f"spa_blocks expects distinct numbers of 0 to {depth - 1}. Got {tuple(spa_blocks)}.")
        if not 0 <= freeze_at <= depth + 1:
            raise ValueError(f"freeze_at expects 0 to {depth + 1}. Got {freeze_at}.")

    def _build_block(self, i: int, **arguments) -> nn.Module:
        if i not in self.spa_blocks:
            return GlobalBlock(**arguments)
        return GlobalSelectPackBlock(
            options=self.options,
            shift_size=self.options.window_size // 2 * (i % 2),
            has_gate=self.options.gate == "per_block" or i == self.spa_blocks[0],
            seed=i,
            **arguments,
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, in_channels, height, width) normalised images, of any size; every token counts as valid.

        Returns:
            ``{name: (B, C, ceil(height / stride), ceil(width / stride))}``: the last block's output, normalised.
        """
        if self.training and self.spa_blocks:
            warn_unsupervised("ViT")
        return self.forward_with_selections(x)[0]

    def forward_with_selections(
        self,
        x: Tensor,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        labels: dict[int, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], list[BlockSelection]]:
        """
        Args:
            x: (B, in_channels, height, width) normalised and padded images.
            image_sizes: (height, width) in pixels of each image without its padding; tokens wholly in padding are then
                never selected. None: every token is valid.
            labels: ``{stride: (B, H, W) uint8}`` selection labels, read by ``select="oracle"`` only.

        Returns:
            the map as :meth:`forward` gives it, and one selection for each block of ``spa_blocks``.
        """
        x = self.patch_embed(x)
        x = self.pos_drop(x + resize_positions(self.pos_embed, (x.shape[1], x.shape[2])))
        valid = valid_tokens(image_sizes, x.shape[1:3], self.stride, x.shape[0], x.device)
        label = None if labels is None else labels.get(self.stride)
        selections: list[BlockSelection] = []
        decision: Decision | None = None
        for i, block in enumerate(self.blocks):
            if i not in self.spa_blocks:
                x = run_block(block, self.use_checkpoint, x)
                continue
            x, decision, layout = run_block(block, self.use_checkpoint, x, valid, None, label, decision)
            selections.append(
                BlockSelection(
                    stage=1,
                    block=i,
                    stride=self.stride,
                    score=decision.score,
                    keep_mask=decision.keep_mask,
                    valid=valid,
                    layout=layout,
                )
            )
        return {self._out_features[0]: self.norm(x).permute(0, 3, 1, 2).contiguous()}, selections

    @property
    def size_divisibility(self) -> int:
        """Padded images then hold whole patches; the backbone itself takes any size."""
        return self.stride

    def _frozen_modules(self) -> list[nn.Module]:
        if self.freeze_at == 0:
            return []
        return [self.patch_embed, self.pos_drop, *self.blocks[: self.freeze_at - 1]]

    def _freeze(self) -> None:
        super()._freeze()
        self.pos_embed.requires_grad_(self.freeze_at == 0)


@BACKBONE_REGISTRY.register()
def build_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ViT:
    """A plain ViT from ``MODEL.VIT``; ``MODEL.SPT`` says how its ``SPA_BLOCKS`` select and pack."""
    node = cfg.MODEL.VIT
    return ViT(
        patch_size=node.PATCH_SIZE,
        in_channels=input_shape.channels,
        embed_dim=node.EMBED_DIM,
        depth=node.DEPTH,
        num_heads=node.NUM_HEADS,
        mlp_ratio=node.MLP_RATIO,
        qkv_bias=node.QKV_BIAS,
        drop_rate=node.DROP_RATE,
        attn_drop_rate=node.ATTN_DROP_RATE,
        drop_path_rate=node.DROP_PATH_RATE,
        pretrain_image_size=node.PRETRAIN_IMAGE_SIZE,
        spa_blocks=tuple(node.SPA_BLOCKS),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        use_checkpoint=node.USE_CHECKPOINT,
        window_size=cfg.MODEL.SPT.WINDOW_SIZE,
        **select_pack_arguments(cfg.MODEL.SPT),
    )
