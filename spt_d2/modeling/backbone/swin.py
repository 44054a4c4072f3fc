"""Dense Swin: the baseline, and the skeleton that the Select and Pack Transformer fills differently."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn

from spt_d2.layers.chunked import channels_first, runs_in_chunks
from spt_d2.layers.patch import PatchEmbed
from spt_d2.layers.stage import SwinStage
from spt_d2.modeling.backbone.freezing import FreezableBackbone
from spt_d2.ops.selection import BlockSelection, valid_tokens

STAGE_NAMES = ("res2", "res3", "res4", "res5")


class Swin(FreezableBackbone):
    """
    Swin Transformer (Liu et al., 2021): feature maps ``res2`` to ``res5`` at strides 4, 8, 16, 32.

    Parameter names are those of Swin's checkpoints and of Detectron2's ``SwinTransformer``.

    Args:
        patch_size: stride of the first stage, in pixels; backbones that select take 4 only.
        in_channels: of the image.
        embed_dim: C, channels of the first stage; each further stage doubles them.
        depths: blocks per stage.
        num_heads: attention heads per stage.
        window_size: M, in tokens.
        mlp_ratio: hidden channels of the MLP over those of the stage.
        qkv_bias: whether q, k, v have a bias.
        drop_rate: dropout of tokens after the patch embedding, of MLPs and projections.
        attn_drop_rate: dropout of attention weights.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        out_features: which of ``res2`` to ``res5`` to return, each with its own LayerNorm.
        freeze_at: 0 freezes nothing, 1 the patch embedding, k the stages before the k-th too.
        use_checkpoint: recompute activations in the backward pass, block by block: less memory, more time.
    """

    # Selections, their labels, and what is made for a map's size count on strides of 4, 8, 16, 32.
    takes_any_patch_size = True

    def __init__(
        self,
        *,
        patch_size: int = 4,
        in_channels: int = 3,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        out_features: Sequence[str] = STAGE_NAMES,
        freeze_at: int = 0,
        use_checkpoint: bool = False,
    ):
        super().__init__()
        self._check_arguments(depths, num_heads, out_features, freeze_at)
        if patch_size != 4 and not self.takes_any_patch_size:
            raise ValueError(f"{type(self).__name__}(patch_size=) expects 4, for strides of 4 to 32. Got {patch_size}.")
        self.patch_embed = PatchEmbed(patch_size, in_channels, embed_dim)
        self.pos_drop = nn.Dropout(drop_rate)
        # On the CPU whatever the default device is: a model may be built on the meta device, to count or to shard it.
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.layers = nn.ModuleList()
        for i, depth in enumerate(depths):
            first = sum(depths[:i])
            stage = self._build_stage(
                i + 1,
                dim=embed_dim * 2**i,
                depth=depth,
                num_heads=num_heads[i],
                window_size=window_size,
                drop_path=rates[first : first + depth],
                downsample=i < len(depths) - 1,
                use_checkpoint=use_checkpoint,
                mlp_ratio=mlp_ratio,
                qkv_bias=qkv_bias,
                drop=drop_rate,
                attn_drop=attn_drop_rate,
            )
            self.layers.append(stage)

        names = STAGE_NAMES[: len(depths)]
        self._out_features = [name for name in names if name in out_features]
        self._out_feature_strides = {name: patch_size * 2**i for i, name in enumerate(names)}
        self._out_feature_channels = {name: embed_dim * 2**i for i, name in enumerate(names)}
        self._stage_names = names
        for i, name in enumerate(names):
            if name in out_features:
                self.add_module(f"norm{i}", nn.LayerNorm(embed_dim * 2**i))
        self.apply(init_weights)
        self.freeze_at = freeze_at
        self._freeze()

    @staticmethod
    def _check_arguments(
        depths: Sequence[int], num_heads: Sequence[int], out_features: Sequence[str], freeze_at: int
    ) -> None:
        if len(depths) != len(num_heads) or not 1 <= len(depths) <= len(STAGE_NAMES):
            raise ValueError(
                "A backbone expects one depth and one number of heads for each of 1 to 4 stages.\n"
                f"  depths   : {tuple(depths)}\n  num_heads: {tuple(num_heads)}"
            )
        known = STAGE_NAMES[: len(depths)]
        unknown = [name for name in out_features if name not in known]
        if unknown or not out_features:
            raise ValueError(f"out_features expects some of {known}. Got {tuple(out_features)}.")
        if not 0 <= freeze_at <= len(depths) + 1:
            raise ValueError(f"freeze_at expects 0 to {len(depths) + 1}. Got {freeze_at}.")

    def _build_stage(self, number: int, **arguments) -> nn.Module:
        """Stage ``number`` (1 to 4); subclasses choose its blocks."""
        return SwinStage(**arguments)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (B, in_channels, height, width) normalised images, of any size.

        Returns:
            ``{name: (B, channels, ceil(height / stride), ceil(width / stride))}`` for each out feature.
        """
        return self._through_stages(x, lambda _, stage, x: stage(x))

    def _through_stages(self, x: Tensor, run: Callable[[int, Any, Tensor], Tensor]) -> dict[str, Tensor]:
        """
        Args:
            x: images, as :meth:`forward` takes them.
            run: what a stage of this number, from 0, makes of (B, H, W, C) tokens, before its merging.

        Returns:
            feature maps, as :meth:`forward` gives them.
        """
        x = self.pos_drop(self.patch_embed(x))
        features: dict[str, Tensor] = {}
        for i, stage in enumerate(self.layers):
            x = run(i, stage, x)
            self._collect(features, i, x)
            x = x if stage.downsample is None else stage.downsample(x)
        return features

    def _valid_tokens(self, i: int, x: Tensor, image_sizes: Sequence[tuple[int, int]] | None) -> Tensor:
        """(B, H, W) bool: the tokens of stage ``i``, from 0, that are not wholly in padding."""
        stride = self._out_feature_strides[self._stage_names[i]]
        return valid_tokens(image_sizes, x.shape[1:3], stride, x.shape[0], x.device)

    def forward_with_selections(
        self,
        x: Tensor,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        labels: dict[int, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], list[BlockSelection]]:
        """:meth:`forward`, and no selections: a dense backbone takes no decision, and so reads no sizes or labels."""
        return self(x), []

    def _collect(self, features: dict[str, Tensor], i: int, x: Tensor) -> None:
        name = self._stage_names[i]
        if name in self._out_features:
            norm = getattr(self, f"norm{i}")
            in_chunks = runs_in_chunks(x, norm)
            features[name] = channels_first(x, norm) if in_chunks else norm(x).permute(0, 3, 1, 2).contiguous()

    @property
    def size_divisibility(self) -> int:
        """Maps of padded inputs then halve exactly from stage to stage; the backbone itself takes any size."""
        return self._out_feature_strides[self._stage_names[-1]]

    def _frozen_modules(self) -> list[nn.Module]:
        if self.freeze_at == 0:
            return []
        return [self.patch_embed, self.pos_drop, *self.layers[: self.freeze_at - 1]]


def init_weights(module: nn.Module) -> None:
    """Truncated normal weights and zero biases for linear layers, as Swin and ViT start."""
    # Gates are Linear(C, 1) and keep their own start.
    if isinstance(module, nn.Linear) and module.out_features > 1:
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def swin_arguments(node: CfgNode, cfg: CfgNode, input_shape: ShapeSpec) -> dict:
    """Constructor arguments that MODEL.SWIN and MODEL.SPT have in common."""
    return {
        "in_channels": input_shape.channels,
        "embed_dim": node.EMBED_DIM,
        "depths": tuple(node.DEPTHS),
        "num_heads": tuple(node.NUM_HEADS),
        "window_size": node.WINDOW_SIZE,
        "mlp_ratio": node.MLP_RATIO,
        "qkv_bias": node.QKV_BIAS,
        "drop_rate": node.DROP_RATE,
        "attn_drop_rate": node.ATTN_DROP_RATE,
        "drop_path_rate": node.DROP_PATH_RATE,
        "out_features": tuple(node.OUT_FEATURES),
        "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
        "use_checkpoint": node.USE_CHECKPOINT,
    }


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> Swin:
    """Dense Swin from ``MODEL.SWIN``."""
    return Swin(**swin_arguments(cfg.MODEL.SWIN, cfg, input_shape))
