"""Blocks against a slow truth over all tokens: dense, masked, with every option."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spt_d2.layers.block import Decision, SelectPackBlock, SwinBlock
from spt_d2.layers.select_pack_attention import FFN_TOKENS, POSITIONS, PROJ_TOKENS, SelectPackOptions
from spt_d2.ops.gating import GATINGS
from tests import reference

DIM, HEADS, WINDOW = 8, 2, 3


def make_block(
    shift_size: int = 1, has_gate: bool = True, dtype: torch.dtype = torch.float64, **values
) -> SelectPackBlock:
    """A block whose gate keeps about half of the tokens."""
    options = SelectPackOptions(**{"window_size": WINDOW, "threshold": 0.5, "tau": 0.8, **values})
    block = SelectPackBlock(DIM, HEADS, options, shift_size=shift_size, has_gate=has_gate, mlp_ratio=2.0)
    reference.randomise_(block).to(dtype)
    if has_gate:
        torch.nn.init.zeros_(block.gate.proj.bias)
    return block


def rule_of(block: SelectPackBlock) -> dict:
    options = block.options
    return {
        "container_size": options.container_length,
        "window_size": options.window_size,
        "shift_size": block.shift_size,
        "order": options.order,
        "segment": options.segment,
    }


def slow_block(
    block: SelectPackBlock, x: Tensor, keep: Tensor, score: Tensor, soft: Tensor, decides: bool = True
) -> Tensor:
    """Every step on every token; who is not kept is masked in attention and left out of what is added."""
    weights = dict(block.named_parameters())
    options = block.options
    batch, height, width, _ = x.shape

    def norm(t, name):
        return F.layer_norm(t, (DIM,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(t, name):
        return F.linear(t, weights[f"{name}.weight"], weights[f"{name}.bias"])

    if options.position == "conv":
        kernel = weights["pos_conv.weight"]
        x = x + F.conv2d(x.movedim(-1, 1), kernel, weights["pos_conv.bias"], padding=1, groups=DIM).movedim(1, -1)
    factor = torch.ones_like(score)
    if options.gating == "sigmoid":
        factor = 1 / (1 + torch.exp(-score))
    elif options.gating == "centred":
        factor = 1 / (1 + torch.exp(-score) * options.threshold / (1 - options.threshold))
    if block.training:
        # One, with the slope of the relaxed decision.
        factor = factor * (1 + (soft - soft.detach() if decides else 0))
    tokens = (norm(x, "norm1") * factor[..., None]).flatten(0, 2)
    q, k, v = linear(tokens, "attn.qkv").view(-1, 3, HEADS, DIM // HEADS).unbind(1)
    if options.position == "rope":
        q, k = reference.rotate(q, height, width), reference.rotate(k, height, width)
    bias = None
    if options.position == "relative_bias":
        bias = reference.position_bias(weights["attn.relative_position_bias_table"], batch, height, width, WINDOW)
    mask = reference.attention_mask(keep, **rule_of(block)).to(x.device)
    attended = reference.dense_attention(q, k, v, mask, bias).flatten(1)
    branch = linear(attended, "attn.proj").view_as(x)
    kept = keep[..., None]
    x = x + (branch if options.proj_tokens == "all" else torch.where(kept, branch, 0.0))

    normed = norm(x, "norm2")
    ffn = linear(F.gelu(linear(normed, "mlp.fc1")), "mlp.fc2")
    if options.ffn_tokens == "selected":
        ffn = torch.where(kept, ffn, 0.0)
    elif options.ffn_tokens == "light":
        ffn = torch.where(kept, ffn, linear(normed, "light"))
    return x + ffn


def slow_decision(block: SelectPackBlock, x: Tensor, valid: Tensor, score_up: Tensor | None):
    """Score, relaxed decision and keep mask of the gate, as equations 4 and 6 state them."""
    weights = dict(block.named_parameters())
    if block.options.position == "conv":
        kernel = weights["pos_conv.weight"]
        x = x + F.conv2d(x.movedim(-1, 1), kernel, weights["pos_conv.bias"], padding=1, groups=DIM).movedim(1, -1)
    normed = F.layer_norm(x, (DIM,), weights["norm1.weight"], weights["norm1.bias"])
    score = normed @ weights["gate.proj.weight"][0] + weights["gate.proj.bias"]
    if score_up is not None:
        score = torch.maximum(score, score_up)
    soft = 1 / (1 + torch.exp(-score / block.options.tau))
    return score, soft, (soft > block.options.threshold) & valid


KINDS = list(itertools.product(reference.ORDERS_AND_SEGMENTS, (0, 1)))
# Every choice of gating, position and tokens; orders, segments and shifts take turns.
CHOICES = [
    pytest.param(
        *choice,
        *KINDS[i % len(KINDS)],
        id="-".join(map(str, (*choice, *KINDS[i % len(KINDS)][0], KINDS[i % len(KINDS)][1]))),
    )
    for i, choice in enumerate(itertools.product(GATINGS, POSITIONS, PROJ_TOKENS, FFN_TOKENS))
]


@pytest.mark.parametrize("gating, position, proj_tokens, ffn_tokens, kind, shift_size", CHOICES)
def test_block_equals_the_slow_truth(gating, position, proj_tokens, ffn_tokens, kind, shift_size, device):
    block = make_block(
        shift_size,
        gating=gating,
        position=position,
        proj_tokens=proj_tokens,
        ffn_tokens=ffn_tokens,
        order=kind[0],
        segment=kind[1],
    ).to(device)
    x = torch.randn(2, 5, 4, DIM, dtype=torch.float64, device=device, requires_grad=True)
    score_up = (torch.randn(2, 5, 4, dtype=torch.float64) - 0.7).to(device).requires_grad_()
    valid = torch.ones(2, 5, 4, dtype=torch.bool, device=device)
    valid[1, 3:] = False
    inputs = {"x": x, "score_up": score_up, **dict(block.named_parameters())}
    # Angles of rope are float32.
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if position == "rope" else reference.TOLERANCE[torch.float64]

    actual, decision, _ = block(x, valid, score_up)
    score, soft, keep = slow_decision(block, x, valid, score_up)
    assert 5 < keep.sum() < 30
    assert torch.equal(decision.keep_mask, keep)
    reference.close(decision.score, score)
    reference.close(decision.soft, soft)
    expected = slow_block(block, x, keep, score, soft)
    reference.close(actual, expected, **tolerance)
    truth = reference.gradients(expected, **inputs)
    for name, gradient in reference.gradients(actual, **inputs).items():
        reference.close(gradient, truth[name], **tolerance)
    assert truth["gate.proj.weight"].abs().sum() > 0 and truth["score_up"].abs().sum() > 0

    block.eval()
    reference.close(block(x, valid, score_up)[0], slow_block(block, x, keep, score, soft), **tolerance)


@pytest.mark.parametrize("gating", GATINGS)
def test_tokens_not_kept_give_the_gate_no_gradient_of_the_task(gating):
    block = make_block(gating=gating)
    x = torch.randn(2, 5, 4, DIM, dtype=torch.float64)
    valid = torch.ones(2, 5, 4, dtype=torch.bool)
    out, decision, _ = block(x, valid)
    (gradient,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), decision.score)
    assert (gradient[~decision.keep_mask] == 0).all()
    assert (gradient[decision.keep_mask] != 0).all()


@pytest.mark.parametrize("select, decides", [("topk", True), ("random", False), ("oracle", False), ("all", False)])
@pytest.mark.parametrize("gating", GATINGS)
def test_controls_take_the_slope_only_where_the_score_decides(select, decides, gating):
    block = make_block(select=select, gating=gating, keep_ratio=0.4)
    x = torch.randn(2, 5, 4, DIM, dtype=torch.float64, requires_grad=True)
    valid = torch.ones(2, 5, 4, dtype=torch.bool)
    labels = (torch.rand(2, 5, 4) < 0.5).to(torch.uint8)
    inputs = {"x": x, **dict(block.named_parameters())}
    actual, decision, _ = block(x, valid, labels=labels)
    score, soft, _ = slow_decision(block, x, valid, None)
    expected = slow_block(block, x, decision.keep_mask, score, soft, decides)
    reference.close(actual, expected)
    generator = reference.gradients(actual, **inputs)
    assert (generator["gate.proj.weight"].abs().sum() > 0) == (decides or gating != "none")
    if decides or gating != "none":
        for name, gradient in reference.gradients(expected, **inputs).items():
            reference.close(generator[name], gradient)


def anchor_pair(with_bias: bool, shift_size: int, **values) -> tuple[SelectPackBlock, SwinBlock]:
    swin = reference.randomise_(SwinBlock(DIM, HEADS, 7, shift_size)).double()
    options = SelectPackOptions(
        select="all",
        gating="none",
        order="window",
        position="relative_bias" if with_bias else "none",
        **{"segment": "window", **values},
    )
    block = SelectPackBlock(DIM, HEADS, options, shift_size=shift_size).double()
    weights = swin.state_dict()
    if not with_bias:
        weights["attn.relative_position_bias_table"].zero_()
        del weights["attn.relative_position_bias_table"]
    missing, unexpected = block.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith("gate.") for name in missing)
    return block, swin


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("shift_size", [0, 3])
@pytest.mark.parametrize("height, width", [(7, 7), (14, 21)])
@pytest.mark.parametrize("container_size", [0, 60, 100])
def test_anchor_everything_kept_is_swins_window_attention(
    container_size, height, width, shift_size, with_bias, training, device
):
    block, swin = (
        module.train(training).to(device)
        for module in anchor_pair(with_bias, shift_size, container_size=container_size)
    )
    x = torch.randn(2, height, width, DIM, dtype=torch.float64, device=device, requires_grad=True)
    valid = torch.ones(2, height, width, dtype=torch.bool, device=device)
    actual, expected = block(x, valid)[0], swin(x)
    reference.close(actual, expected, atol=1e-10, rtol=0.0)
    shared = dict(block.named_parameters())
    shared = {name: parameter for name, parameter in shared.items() if not name.startswith("gate.")}
    truth = reference.gradients(expected, x=x, **{name: dict(swin.named_parameters())[name] for name in shared})
    for name, gradient in reference.gradients(actual, x=x, **shared).items():
        reference.close(gradient, truth[name], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("segment", ["container", "shared"])
def test_anchor_unshifted_plain_containers_are_the_windows(segment, with_bias):
    block, swin = anchor_pair(with_bias, 0, segment=segment)
    x = torch.randn(2, 14, 21, DIM, dtype=torch.float64)
    reference.close(block(x, torch.ones(2, 14, 21, dtype=torch.bool))[0], swin(x), atol=1e-10, rtol=0.0)


def one_sample(block: SelectPackBlock, x: Tensor, valid: Tensor, first: float, second: float) -> Tensor:
    """The block with its two branches scaled by given factors."""
    factors = iter((first, second))
    block.drop_path.sample = lambda batch, like: torch.full((batch,), next(factors), dtype=like.dtype)
    try:
        return block(x, valid)[0].detach()
    finally:
        del block.drop_path.sample


@pytest.mark.parametrize("proj_tokens", PROJ_TOKENS)
@pytest.mark.parametrize("ffn_tokens", FFN_TOKENS)
def test_stochastic_depth_drops_the_branches_of_whole_images(proj_tokens, ffn_tokens):
    block = make_block(proj_tokens=proj_tokens, ffn_tokens=ffn_tokens)
    x = torch.randn(24, 3, 4, DIM, dtype=torch.float64)
    valid = torch.ones(24, 3, 4, dtype=torch.bool)
    block.drop_path.rate = 0.5
    actual = block(x, valid)[0].detach()
    # Attention dropped or doubled, then the FFN dropped or doubled.
    cases = [one_sample(block, x, valid, *factors) for factors in itertools.product((0.0, 2.0), repeat=2)]
    seen = [
        next(i for i, case in enumerate(cases) if torch.allclose(actual[image], case[image], atol=1e-9, rtol=0))
        for image in range(24)
    ]
    assert set(seen) == {0, 1, 2, 3}
    # A branch that is dropped leaves the image as it was.
    dropped = one_sample(block, x, valid, 0.0, 0.0)
    reference.close(dropped, x)


@pytest.mark.parametrize("ffn_tokens", FFN_TOKENS)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("proj_tokens", PROJ_TOKENS)
@pytest.mark.parametrize("case", reference.KEEP_CASES)
def test_edges_have_finite_outputs_and_a_gradient_for_every_parameter(case, proj_tokens, position, ffn_tokens):
    keep = dict(reference.keep_masks(2, 4, 5))[case]
    for gating, segment in zip(GATINGS, ("container", "shared", "window")):
        # The gate's own score is far below the border: what comes from above decides.
        block = make_block(
            gating=gating, position=position, ffn_tokens=ffn_tokens, proj_tokens=proj_tokens, segment=segment
        )
        with torch.no_grad():
            block.gate.proj.bias.fill_(-30.0)
        score_up = torch.where(keep, 3.0, -40.0).double().requires_grad_()
        x = torch.randn(2, 4, 5, DIM, dtype=torch.float64, requires_grad=True)
        out, decision, layout = block(x, torch.ones_like(keep), score_up)
        assert torch.equal(decision.keep_mask, keep) and layout.num_tokens == int(keep.sum())
        out.square().sum().backward()
        for name, tensor in [("x", x), ("score_up", score_up), *block.named_parameters()]:
            assert tensor.grad is not None, name
            assert torch.isfinite(tensor.grad).all(), name
        block.eval()
        assert torch.isfinite(block(x, torch.ones_like(keep), score_up)[0]).all()


@pytest.mark.parametrize("case", reference.KEEP_CASES)
@pytest.mark.parametrize("select", ["gate", "topk", "random", "oracle", "all"])
def test_edges_of_every_way_to_select(select, case):
    """The valid tokens are the edge: no way to select keeps others."""
    valid = dict(reference.keep_masks(2, 4, 5))[case]
    block = make_block(select=select, keep_ratio=1.0, threshold=0.0)
    labels = torch.ones(2, 4, 5, dtype=torch.uint8)
    x = torch.randn(2, 4, 5, DIM, dtype=torch.float64)
    out, decision, _ = block(x, valid, labels=labels)
    assert torch.equal(decision.keep_mask, valid)
    out.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in block.parameters())


@pytest.mark.parametrize("segment", ["container", "window"])
def test_an_image_never_sees_its_batch(segment):
    block = make_block(segment=segment)
    x = torch.randn(3, 5, 7, DIM, dtype=torch.float64)
    valid = torch.ones(3, 5, 7, dtype=torch.bool)
    out, decision, _ = block(x, valid)
    alone = torch.cat([block(image[None], valid[:1])[0] for image in x])
    reference.close(out, alone)
    order = [2, 0, 1]
    reference.close(block(x[order], valid)[0], out[order])
    other = x.clone()
    other[0] = torch.randn(5, 7, DIM)
    changed, new_decision, _ = block(other, valid)
    assert new_decision.keep_mask[0].sum() != decision.keep_mask[0].sum()
    reference.close(changed[1:], out[1:])


def test_shared_containers_depend_on_the_batch_by_counts_alone():
    """The paper's figure: other images move an image's container borders, their content does not matter."""
    block = make_block(segment="shared", select="oracle")
    x = torch.randn(2, 5, 7, DIM, dtype=torch.float64)
    other = x.clone()
    other[0] = torch.randn(5, 7, DIM)
    valid = torch.ones(2, 5, 7, dtype=torch.bool)
    labels = torch.zeros(2, 5, 7, dtype=torch.uint8)
    labels[0, :2, :5] = 1
    labels[1, 1:4] = 1
    moved = labels.clone()
    moved[0] = labels[0].roll(2, 0)
    out = block(x, valid, labels=labels)[0]
    reference.close(block(other, valid, labels=labels)[0][1], out[1])
    reference.close(block(other, valid, labels=moved)[0][1], out[1])
    moved[0, 0, 0] = 1
    assert not torch.allclose(block(x, valid, labels=moved)[0][1], out[1])


def test_padding_is_never_selected_and_its_features_do_not_matter():
    valid = torch.zeros(2, 6, 6, dtype=torch.bool)
    valid[0, :4, :5] = True
    valid[1, :6, :3] = True
    for segment, select in itertools.product(("container", "window"), ("gate", "topk", "all")):
        block = make_block(segment=segment, select=select)
        x = torch.randn(2, 6, 6, DIM, dtype=torch.float64)
        out, decision, layout = block(x, valid)
        assert not (decision.keep_mask & ~valid).any()
        assert not (~valid).flatten()[layout.keep_indices].any()
        other = torch.where(valid[..., None], x, torch.randn_like(x) * 5)
        changed, new_decision, _ = block(other, valid)
        assert torch.equal(new_decision.keep_mask, decision.keep_mask)
        reference.close(changed[valid], out[valid])


def test_noise_acts_in_training_only():
    block = make_block(noise="logistic", dtype=torch.float32)
    x, valid = torch.randn(2, 6, 6, DIM), torch.ones(2, 6, 6, dtype=torch.bool)
    assert not torch.equal(block(x, valid)[1].keep_mask, block(x, valid)[1].keep_mask)
    block.eval()
    first, second = block(x, valid), block(x, valid)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1].keep_mask, second[1].keep_mask)
    quiet = make_block(noise="none", dtype=torch.float32)
    assert torch.equal(quiet(x, valid)[1].keep_mask, first[1].keep_mask)


def test_training_and_evaluation_decide_alike_without_noise():
    for select in ("gate", "topk"):
        block = make_block(select=select)
        x, valid = torch.randn(2, 6, 6, DIM, dtype=torch.float64), torch.ones(2, 6, 6, dtype=torch.bool)
        trained, evaluated = block(x, valid), block.eval()(x, valid)
        assert torch.equal(trained[1].keep_mask, evaluated[1].keep_mask)
        assert torch.equal(trained[1].score, evaluated[1].score)
        reference.close(trained[0], evaluated[0])


def test_every_dropout_is_off_in_evaluation():
    for block_class, arguments in (
        (SwinBlock, ()),
        (SelectPackBlock, (SelectPackOptions(window_size=7, ffn_tokens="light"),)),
    ):
        noisy = block_class(DIM, HEADS, *arguments, drop=0.5, attn_drop=0.5, drop_path=0.5)
        plain = block_class(DIM, HEADS, *arguments)
        plain.load_state_dict(noisy.state_dict())
        x, rest = torch.randn(2, 7, 7, DIM), [torch.ones(2, 7, 7, dtype=torch.bool)] * (block_class is SelectPackBlock)
        outs = [module.eval()(x, *rest) for module in (noisy, noisy, plain)]
        outs = [out[0] if isinstance(out, tuple) else out for out in outs]
        assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def test_swin_block_is_attention_then_mlp_each_added_to_its_input():
    block = reference.randomise_(SwinBlock(DIM, HEADS, 4, 2, mlp_ratio=2.0)).double()
    x = torch.randn(2, 5, 6, DIM, dtype=torch.float64)
    attended = x + block.attn(F.layer_norm(x, (DIM,), block.norm1.weight, block.norm1.bias))
    expected = attended + block.mlp(F.layer_norm(attended, (DIM,), block.norm2.weight, block.norm2.bias))
    reference.close(block(x), expected)
    assert block.mlp.fc1.out_features == 2 * DIM


def test_a_block_without_gate_follows_the_decision_it_is_given():
    block = make_block(has_gate=False, gating="sigmoid")
    assert block.gate is None
    x = torch.randn(2, 5, 4, DIM, dtype=torch.float64)
    score = torch.randn(2, 5, 4, dtype=torch.float64)
    soft, keep = torch.sigmoid(score), torch.rand(2, 5, 4) < 0.5
    out, decision, _ = block(x, torch.ones_like(keep), decision=Decision(score, keep, soft))
    assert decision.keep_mask is keep
    reference.close(out, slow_block(block, x, keep, score, soft))


def test_a_block_without_gate_and_decision_is_an_error():
    with pytest.raises(
        ValueError, match=r"SelectPackBlock\(has_gate=False\) expects the decision of its stage's first block"
    ):
        make_block(has_gate=False)(torch.zeros(1, 3, 3, DIM).double(), torch.ones(1, 3, 3, dtype=torch.bool))


def test_oracle_without_labels_is_an_error():
    with pytest.raises(ValueError, match="select='oracle' expects selection labels"):
        make_block(select="oracle")(torch.zeros(1, 3, 3, DIM).double(), torch.ones(1, 3, 3, dtype=torch.bool))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("case", reference.KEEP_CASES)
def test_autocast_trains_every_parameter(case, position, dtype):
    keep = dict(reference.keep_masks(2, 14, 14))[case].cuda()
    options = SelectPackOptions(position=position, gating="sigmoid", ffn_tokens="light")
    block = SelectPackBlock(64, 2, options, shift_size=3).cuda()
    with torch.no_grad():
        block.gate.proj.bias.fill_(-30.0)
    x = torch.randn(2, 14, 14, 64, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype=dtype):
        out, decision, _ = block(x, torch.ones_like(keep), torch.where(keep, 3.0, -40.0))
    assert torch.equal(decision.keep_mask, keep) and decision.score.dtype == torch.float32
    out.float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in block.parameters())


def test_bfloat16_autocast_on_the_cpu_keeps_the_residual_stream_in_float32():
    block = make_block(ffn_tokens="light", gating="sigmoid", dtype=torch.float32)
    x, valid = torch.randn(2, 6, 6, DIM, requires_grad=True), torch.ones(2, 6, 6, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, decision, _ = block(x, valid)
    assert out.dtype == torch.float32 and decision.score.dtype == torch.float32
    out.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in block.parameters())
    with torch.no_grad():
        exact = block(x, valid)[0]
    assert (out - exact).abs().max() < 0.2 * math.ceil(exact.abs().max().item())
