"""Select and Pack Attention: attention over packed tokens, and the options of the method (Sec. 3.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spt_d2.layers.linear import apply_linear
from spt_d2.ops.attention import BACKENDS, packed_attention
from spt_d2.ops.gating import GATINGS
from spt_d2.ops.packing import PackedLayout, check_segment
from spt_d2.ops.padding import PACKINGS
from spt_d2.ops.rotary import apply_rotary, rotary_angles
from spt_d2.ops.selection import NOISES, SELECTS
from spt_d2.ops.windows import ORDERS

POSITIONS = ("none", "rope", "conv", "relative_bias")
GATES = ("per_block", "per_stage")
PROJ_TOKENS = ("selected", "all")
FFN_TOKENS = ("all", "light", "selected")


@dataclass(frozen=True)
class SelectPackOptions:
    """
    How tokens are selected, packed and attended to. The paper's value is named where there is one.

    Attributes:
        window_size: M of the token order and of the position bias table (7).
        container_size: L, in tokens; 0 stands for window_size squared (49).
        gate: ``per_block`` (paper) or ``per_stage``: one decision for all blocks of a stage.
        gating: ``sigmoid`` (eq. 5), ``centred`` or ``none``; see :func:`spt_d2.ops.gating.gating_factor`.
        select: ``gate`` (paper), ``topk``, ``random``, ``oracle`` or ``all``.
        keep_ratio: in (0, 1], for ``topk`` and ``random``.
        token_budget: at inference, the most tokens a block keeps of an image, those of highest score; 0 for no limit.
        threshold: of the keep rule, a probability (0.01).
        tau: temperature of the keep rule.
        noise: in training, ``logistic``, ``gumbel`` or ``none``.
        gate_prior: share of object tokens that gates start from.
        order: ``window`` or ``raster``.
        segment: ``container``, ``shared`` (Fig. 3b), ``window`` or ``image``.
        packing: ``containers`` (paper) or ``padded``: the same result, with the kept tokens of every image padded to as
            many as the batch's fullest image keeps (what Fig. 1 argues against); see :mod:`spt_d2.ops.padding`.
        position: in the blocks, ``none`` (the paper names none), ``rope``, ``conv`` or ``relative_bias``.
        proj_tokens: the out-projection sees ``selected`` tokens or ``all`` (eq. 9).
        ffn_tokens: ``all`` (paper), ``light`` (others take one Linear(C, C)) or ``selected``.
        attention_backend: ``auto``, ``xformers`` or ``sdpa``.
    """

    window_size: int = 7
    container_size: int = 0
    gate: str = "per_block"
    gating: str = "none"
    select: str = "gate"
    keep_ratio: float = 0.25
    token_budget: int = 0
    threshold: float = 0.05
    tau: float = 1.0
    noise: str = "none"
    gate_prior: float = 0.1
    order: str = "window"
    segment: str = "container"
    packing: str = "containers"
    position: str = "none"
    proj_tokens: str = "selected"
    ffn_tokens: str = "all"
    attention_backend: str = "auto"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("gate", GATES),
            ("gating", GATINGS),
            ("select", SELECTS),
            ("noise", NOISES),
            ("order", ORDERS),
            ("packing", PACKINGS),
            ("position", POSITIONS),
            ("proj_tokens", PROJ_TOKENS),
            ("ffn_tokens", FFN_TOKENS),
            ("attention_backend", BACKENDS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} expects one of {allowed}. Got {getattr(self, name)!r}.")
        if not 0.0 <= self.threshold < 1.0:
            raise ValueError(f"threshold expects a probability in [0, 1). Got {self.threshold}.")
        if self.gating == "centred" and self.threshold == 0.0:
            raise ValueError("gating='centred' expects a threshold above 0: it is centred at the threshold's logit.")
        if not 0.0 < self.keep_ratio <= 1.0:
            raise ValueError(f"keep_ratio expects a fraction in (0, 1]. Got {self.keep_ratio}.")
        if self.token_budget < 0:
            raise ValueError(f"token_budget expects 0 (no limit) or more tokens. Got {self.token_budget}.")
        if not 0.0 < self.gate_prior < 1.0:
            raise ValueError(f"gate_prior expects a fraction in (0, 1). Got {self.gate_prior}.")
        if self.tau <= 0.0:
            raise ValueError(f"tau expects a temperature above 0. Got {self.tau}.")
        if self.container_size < 0:
            raise ValueError(
                f"container_size expects 0 (window_size squared) or more tokens. Got {self.container_size}."
            )
        if self.segment == "image" and self.position == "relative_bias":
            raise ValueError(
                "position='relative_bias' expects segments within a window or a container, whose offsets its table "
                "holds. Got segment='image'.\nHINT: position 'rope' or 'conv'."
            )
        check_segment(self.segment, self.order, self.container_length, self.window_size)

    @property
    def container_length(self) -> int:
        """L in tokens, the default resolved."""
        return self.container_size or self.window_size**2


class SelectPackAttention(nn.Module):
    """
    Multi-head self-attention over packed tokens. The out-projection is left to the block, which knows who takes it.

    Args:
        dim: C.
        num_heads: h; C must be a multiple.
        options: window size, position and backend are read here.
        qkv_bias: whether q, k, v have a bias.
        attn_drop: dropout of the attention weights.
    """

    def __init__(
        self, dim: int, num_heads: int, options: SelectPackOptions, qkv_bias: bool = True, attn_drop: float = 0.0
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"SelectPackAttention expects dim to be a multiple of num_heads. Got {dim}, {num_heads}.")
        if options.position == "rope" and (dim // num_heads) % 4:
            raise ValueError(f"position='rope' expects a head dim that is a multiple of 4. Got {dim // num_heads}.")
        self.num_heads, self.head_dim, self.attn_drop = num_heads, dim // num_heads, attn_drop
        self.position, self.window_size = options.position, options.window_size
        self.backend = options.attention_backend
        self.relative_position_bias_table = None
        if options.position == "relative_bias":
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * self.window_size - 1) ** 2, num_heads))
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, layout: PackedLayout) -> Tensor:
        """(T, C) packed tokens to (T, C) attended values, heads concatenated, before the out-projection."""
        q, k, v = apply_linear(self.qkv, tokens).unflatten(1, (3, self.num_heads, self.head_dim)).unbind(1)
        if self.position == "rope":
            angles = rotary_angles(layout.coordinates, q.shape[-1])
            q, k = apply_rotary(q, angles), apply_rotary(k, angles)
        out = packed_attention(
            q,
            k,
            v,
            layout,
            bias_table=self.relative_position_bias_table,
            window_size=self.window_size,
            backend=self.backend,
            dropout=self.attn_drop if self.training else 0.0,
        )
        return out.flatten(1)
