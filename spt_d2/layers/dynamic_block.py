"""DynamicSwin's block: window attention for all tokens, a full or a light FFN for each (Rao et al., 2023)."""

from torch import Tensor, nn

from spt_d2.layers.block import SwinBlock
from spt_d2.layers.chunked import ffn


class FastMlp(nn.Module):
    """
    The light FFN: LayerNorm and one linear layer, an eighth of the full one's cost.

    Args:
        dim: C.
        drop: dropout after it.
    """

    def __init__(self, dim: int, drop: float = 0.0):
        super().__init__()
        # Named, and its norm kept inside, as in DynamicViT's published code, whose checkpoints load.
        self.fc1 = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.drop(self.fc1(x))


class DynamicBlock(SwinBlock):
    """
    A Swin block with a second, light FFN for tokens that are not kept. All tokens attend, kept or not.

    In training every token runs through both FFNs, and a block hands on both results: more work than a Swin block's. At
    inference each token takes its own FFN alone.

    Args: see :class:`~spt_d2.layers.block.SwinBlock`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        shift_size: int = 0,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__(dim, num_heads, window_size, shift_size, mlp_ratio, qkv_bias, drop, attn_drop, drop_path)
        self.fastmlp = FastMlp(dim, drop)

    # Another interface than SwinBlock's: its stage calls it, and no one else.
    def forward(self, slow: Tensor, fast: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """
        For training.

        As published, the FFN that a token was not given sees what that FFN made of the token in the block before. With
        a mask of other numbers than the block before had, this reads a token from the other of its two results, which
        inference does not have: there a decision acts on what comes after it alone.

        Args:
            slow: (B, H, W, C) tokens as the full FFN of the block before left them; its input, where there is none.
            fast: (B, H, W, C) tokens as the light FFN left them.
            mask: (B, H, W, 1), 1 for kept tokens and 0 for others, with a slope.

        Returns:
            slow and fast (B, H, W, C), to be merged by the mask.
        """
        x = merge(slow, fast, mask)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        own_slow, own_fast = merge(x, slow, mask), merge(fast, x, mask)
        slow = x + self.drop_path(ffn(own_slow, self.norm2, self.mlp))
        return slow, x + self.drop_path(self.fastmlp(own_fast))

    def sparse(self, x: Tensor, keep: Tensor, skip: Tensor) -> Tensor:
        """
        For evaluation, where no branch is dropped.

        Args:
            x: (B, H, W, C).
            keep: (T,) long, kept tokens among the B * H * W.
            skip: (B * H * W - T,) long, all others.

        Returns:
            (B, H, W, C).
        """
        x = x + self.attn(self.norm1(x))
        flat = x.flatten(0, 2)
        slow = ffn(flat.index_select(0, keep), self.norm2, self.mlp)
        fast = self.fastmlp(flat.index_select(0, skip))
        flat = flat.index_add(0, keep, slow.to(flat.dtype))
        return flat.index_add(0, skip, fast.to(flat.dtype)).view(x.shape)


def merge(kept: Tensor, skipped: Tensor, mask: Tensor) -> Tensor:
    """(B, H, W, C) maps joined by a (B, H, W, 1) mask: the first where it is 1, the second where it is 0."""
    return kept * mask + skipped * (1 - mask)
