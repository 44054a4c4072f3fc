"""The Select and Pack Transformer: what its stages hand on, and what must not leak."""

import itertools
import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import reference
from tests.modeling.nano import FEATURES, SIZES, images, nano_spt, nano_swin

from spt_d2.layers.gate import SelectionGate  # isort: skip
from spt_d2.layers.select_pack_attention import FFN_TOKENS, GATES, POSITIONS, PROJ_TOKENS  # isort: skip
from spt_d2.modeling import DAT, SPT, DynamicSwin, SparseViT, SvitGatedSwin  # isort: skip
from spt_d2.modeling.backbone import spt as spt_module  # isort: skip
from spt_d2.ops.padding import PACKINGS  # isort: skip
from spt_d2.ops.gating import GATINGS  # isort: skip
from spt_d2.ops.selection import NOISES, SELECTS  # isort: skip

SUBSETS = [stages for n in range(1, 5) for stages in itertools.combinations((1, 2, 3, 4), n)]


def labels_of(batch: int = 2, size: int = 64) -> dict[int, Tensor]:
    return {s: (torch.rand(batch, size // s, size // s) < 0.4).to(torch.uint8) for s in (4, 8, 16, 32)}


def same_maps(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for name, value in expected.items():
        reference.close(actual[name], value, atol=1e-9, rtol=1e-8)


# The anchor.


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("spa_stages", [(3, 4), (1, 2, 3, 4)], ids=str)
def test_everything_kept_in_windows_it_is_swin(spa_stages, training):
    sizes = {"window_size": 7, "depths": (2, 2, 2, 2)}
    swin = nano_swin(**sizes).double()
    model = nano_spt(
        spa_stages=spa_stages, select="all", segment="window", position="relative_bias", multi_scale=False, **sizes
    )
    missing, unexpected = model.load_state_dict(swin.state_dict(), strict=False)
    assert not unexpected and all(".gate." in name for name in missing)
    model.train(training)
    # 224 pixels: grids of 56, 28, 14 and 7 tokens, whole windows everywhere.
    image = images(1, 224, 224).requires_grad_()
    actual, expected = model(image), swin(image)
    for name in FEATURES:
        reference.close(actual[name], expected[name], atol=1e-10, rtol=1e-10)
    weights = {n: p for n, p in swin.named_parameters() if "layers.2" in n or "patch" in n}
    own = dict(model.named_parameters())
    truth = reference.gradients(expected["res5"], image=image, **weights)
    for name, gradient in reference.gradients(actual["res5"], image=image, **{n: own[n] for n in weights}).items():
        reference.close(gradient, truth[name], atol=1e-10, rtol=1e-9)


# Which stages select, and what they hand on.


@pytest.mark.parametrize("multi_scale", [True, False])
@pytest.mark.parametrize("spa_stages", SUBSETS, ids=str)
def test_any_stages_may_select(spa_stages, multi_scale):
    model = nano_spt(spa_stages=spa_stages, multi_scale=multi_scale)
    features, selections = model.forward_with_selections(images())
    assert {name: tuple(value.shape) for name, value in features.items()} == {
        name: (2, 8 * 2**i, 16 // 2**i, 16 // 2**i) for i, name in enumerate(FEATURES)
    }
    expected = []
    for stage, depth in zip((1, 2, 3, 4), SIZES["depths"]):
        if stage in spa_stages:
            expected += [(stage, block, 2 ** (stage + 1)) for block in range(depth)]
        elif multi_scale and stage + 1 in spa_stages:
            expected.append((stage, None, 2 ** (stage + 1)))
    assert [(s.stage, s.block, s.stride) for s in selections] == expected
    for selection in selections:
        side = 64 // selection.stride
        assert selection.score.shape == selection.valid.shape == (2, side, side)
        assert (selection.keep_mask is None) == (selection.layout is None) == (selection.block is None)
        if selection.layout is not None:
            assert list(selection.layout.counts) == selection.keep_mask.flatten(1).sum(1).tolist()
    sum(f.square().sum() for f in features.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("height, width", [(64, 64), (70, 50)])
def test_scores_are_the_maximum_of_the_gate_and_of_those_pooled_from_the_stage_before(height, width, gate):
    model = nano_spt(gate=gate)
    own: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, SelectionGate):
            module.register_forward_hook(lambda module, inputs, output: own.append(output))
    sizes = [(height, width), (33, 40)]
    _, selections = model.forward_with_selections(images(2, height, width), sizes)
    above: Tensor | None = None
    stage, previous, gates = 0, None, iter(own)
    for selection in selections:
        if selection.stage != stage:
            above, stage = previous, selection.stage
        if gate == "per_block" or selection.block in (None, 0):
            expected = next(gates).detach().clone()
            if above is not None:
                for b, i, j in itertools.product(*map(range, expected.shape)):
                    cell = above.score[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                    cell = cell[above.valid[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]]
                    if cell.numel():
                        expected[b, i, j] = max(expected[b, i, j], cell.max())
        reference.close(selection.score.detach(), expected)
        previous = selection
    assert next(gates, None) is None
    assert [selection.stage for selection in selections] == [2, 3, 3, 4, 4]


def test_gradient_flows_through_the_score_of_the_stage_before():
    model = nano_spt()
    # Own gates far below: every score of stages 3 and 4 is the extra gate's.
    for name, parameter in model.named_parameters():
        if ".gate.proj.bias" in name and name.startswith("layers"):
            torch.nn.init.constant_(parameter, -40.0)
    features, selections = model.forward_with_selections(images())
    assert selections[-1].keep_mask.any() and not selections[1].keep_mask.all()
    gate = model.output_gates["stage2"].gate.proj.weight
    (task,) = torch.autograd.grad(features["res5"].square().sum(), gate, retain_graph=True)
    (loss,) = torch.autograd.grad(selections[-1].score.sum(), gate)
    assert task.abs().sum() > 0 and loss.abs().sum() > 0


def test_without_multi_scale_nothing_is_handed_on():
    model = nano_spt(multi_scale=False)
    assert len(model.output_gates) == 0
    _, selections = model.forward_with_selections(images())
    first = model.layers[3].blocks[0].gate.proj.weight
    assert torch.autograd.grad(selections[0].score.sum(), first, allow_unused=True)[0] is None
    last = torch.autograd.grad(selections[-1].score.sum(), model.layers[3].blocks[1].gate.proj.weight)[0]
    assert last.abs().sum() > 0


def test_one_decision_a_stage_is_shared_by_its_blocks():
    model = nano_spt(gate="per_stage", noise="logistic")
    _, selections = model.forward_with_selections(images())
    for stage in (3, 4):
        first, second = (s for s in selections if s.stage == stage)
        assert torch.equal(first.keep_mask, second.keep_mask) and torch.equal(first.score, second.score)
        assert model.layers[stage - 1].blocks[1].gate is None


# No image sees another, nobody sees padding.


@pytest.mark.parametrize("segment", ["container", "window"])
@pytest.mark.parametrize("select", ["gate", "topk"])
def test_an_image_never_sees_its_batch(segment, select):
    model = nano_spt(segment=segment, select=select, spa_stages=(2, 3, 4))
    x = images(3)
    features, selections = model.forward_with_selections(x)
    alone = [model.forward_with_selections(image[None]) for image in x]
    same_maps(features, {name: torch.cat([maps[name] for maps, _ in alone]) for name in FEATURES})
    for i, selection in enumerate(selections):
        reference.close(selection.score, torch.cat([s[i].score for _, s in alone]))
        if selection.keep_mask is not None:
            assert torch.equal(selection.keep_mask, torch.cat([s[i].keep_mask for _, s in alone]))
    order = [2, 0, 1]
    same_maps(model(x[order]), {name: value[order] for name, value in features.items()})
    x[0] = torch.randn(3, 64, 64)
    same_maps({n: f[1:] for n, f in model(x).items()}, {n: f[1:] for n, f in features.items()})


def test_shared_containers_isolate_images_while_counts_are_fixed():
    model = nano_spt(segment="shared", select="topk", keep_ratio=0.4)
    x = images(2)
    features = model(x)
    x[0] = torch.randn(3, 64, 64)
    same_maps({n: f[1:] for n, f in model(x).items()}, {n: f[1:] for n, f in features.items()})


@pytest.mark.parametrize("order, segment", [("window", "container"), ("window", "window"), ("raster", "container")])
@pytest.mark.parametrize("position", ["none", "rope", "relative_bias"])
@pytest.mark.parametrize("select", ["gate", "topk", "all"])
def test_a_padded_image_gives_what_it_gives_alone(order, segment, position, select):
    """Every stage selects, so that no dense attention sees the padding."""
    model = nano_spt(spa_stages=(1, 2, 3, 4), order=order, segment=segment, position=position, select=select)
    sizes = [(64, 96), (96, 32)]
    alone = [images(1, *size) for size in sizes]
    padded = torch.zeros(2, 3, 96, 96, dtype=torch.float64)
    for image, own, (height, width) in zip(padded, alone, sizes):
        image[:, :height, :width] = own[0]
    features, selections = model.forward_with_selections(padded, sizes)
    for b, (height, width) in enumerate(sizes):
        own_features, own_selections = model.forward_with_selections(alone[b], [sizes[b]])
        for i, name in enumerate(FEATURES):
            h, w = height // (4 * 2**i), width // (4 * 2**i)
            reference.close(features[name][b, :, :h, :w], own_features[name][0], atol=1e-8, rtol=1e-8)
        for selection, own in zip(selections, own_selections):
            h, w = own.score.shape[1:]
            assert torch.equal(selection.keep_mask[b, :h, :w], own.keep_mask[0])
            assert selection.layout.counts[b] == own.layout.counts[0]
            assert not selection.keep_mask[b, h:].any() and not selection.keep_mask[b, :, w:].any()


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("noise", ["none", "logistic"])
def test_padding_is_never_selected(select, noise):
    model = nano_spt(select=select, noise=noise, spa_stages=(1, 3))
    sizes = [(64, 64), (33, 17)]
    _, selections = model.forward_with_selections(
        images(), sizes, {s: torch.ones(2, 64 // s, 64 // s).byte() for s in (4, 16)}
    )
    for selection in selections:
        rows, columns = -(-33 // selection.stride), -(-17 // selection.stride)
        assert selection.valid[1].sum() == rows * columns
        if selection.keep_mask is not None:
            assert not (selection.keep_mask & ~selection.valid).any()


def test_without_sizes_every_token_is_valid():
    model = nano_spt(select="all")
    _, selections = model.forward_with_selections(images(1, 70, 50))
    assert all(s.valid.all() for s in selections)
    assert [s.score.shape for s in selections[:2]] == [(1, 9, 7), (1, 5, 4)]


# Nothing, everything, one token, an image with nothing.

EDGES = {
    "everything": [(64, 64), (64, 64)],
    "nothing": [(0, 0), (0, 0)],
    "one_token": [(1, 1), (0, 0)],
    "an_empty_image": [(64, 64), (0, 0)],
    "ragged": [(64, 20), (33, 64)],
}


@settings(max_examples=150)
@given(
    st.fixed_dictionaries(
        {
            "select": st.sampled_from(SELECTS),
            "gating": st.sampled_from(GATINGS),
            "gate": st.sampled_from(GATES),
            "position": st.sampled_from(POSITIONS),
            "proj_tokens": st.sampled_from(PROJ_TOKENS),
            "ffn_tokens": st.sampled_from(FFN_TOKENS),
            "multi_scale": st.booleans(),
            "noise": st.sampled_from(NOISES),
            "segment": st.sampled_from(["container", "shared", "window"]),
            "packing": st.sampled_from(PACKINGS),
            "spa_stages": st.sampled_from(SUBSETS),
            "drop_path_rate": st.sampled_from([0.0, 0.3]),
        }
    ),
    st.sampled_from(list(EDGES)),
    st.sampled_from([-30.0, -0.3, 30.0]),
)
def test_any_options_train_every_parameter_at_the_edges(values, edge, gate_bias):
    model = nano_spt(torch.float32, **values)
    for module in model.modules():
        if isinstance(module, SelectionGate):
            torch.nn.init.constant_(module.proj.bias, gate_bias)
    x, labels = images(dtype=torch.float32), labels_of()
    features, selections = model.forward_with_selections(x, EDGES[edge], labels)
    sum(f.square().mean() for f in features.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    kept = sum(int(s.keep_mask.sum()) for s in selections if s.keep_mask is not None)
    if edge == "nothing" or (values["select"] == "gate" and gate_bias < -1 and values["noise"] == "none"):
        assert kept == 0
    model.eval()
    with torch.no_grad():
        features, _ = model.forward_with_selections(x, EDGES[edge], labels)
    assert all(torch.isfinite(f).all() for f in features.values())


@pytest.mark.parametrize("height, width", [(1, 1), (4, 4), (5, 37)])
def test_maps_of_a_single_token_work(height, width):
    model = nano_spt(spa_stages=(1, 2, 3, 4))
    features = model(images(2, height, width))
    assert features["res5"].shape == (2, 64, 1, -(-width // 32))
    sum(f.square().sum() for f in features.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


# Training and evaluation.


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("ffn_tokens", FFN_TOKENS)
def test_evaluation_is_deterministic_whatever_is_dropped_in_training(select, ffn_tokens):
    rates = {"drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5, "noise": "logistic"}
    noisy = nano_spt(select=select, ffn_tokens=ffn_tokens, **rates)
    plain = nano_spt(select=select, ffn_tokens=ffn_tokens)
    plain.load_state_dict(noisy.state_dict())
    x, labels = images(), labels_of()
    trained = [noisy.forward_with_selections(x, None, labels)[0]["res5"] for _ in range(2)]
    assert not torch.equal(*trained)
    outs = [model.eval().forward_with_selections(x, None, labels) for model in (noisy, noisy, plain)]
    for features, selections in outs[1:]:
        assert all(torch.equal(features[name], outs[0][0][name]) for name in FEATURES)
        for mine, first in zip(selections, outs[0][1]):
            assert mine.keep_mask is None or torch.equal(mine.keep_mask, first.keep_mask)


def test_training_and_evaluation_decide_alike_without_noise():
    model, x = nano_spt(), images()
    trained, (features, selections) = model.forward_with_selections(x), model.eval().forward_with_selections(x)
    for mine, other in zip(trained[1], selections):
        assert mine.keep_mask is None or torch.equal(mine.keep_mask, other.keep_mask)
    same_maps(trained[0], features)


@pytest.mark.parametrize("noise", ["none", "logistic"])
def test_recomputed_activations_give_the_same_gradients(noise):
    x, gradients = images(), []
    for use_checkpoint in (False, True):
        model = nano_spt(
            use_checkpoint=use_checkpoint, noise=noise, drop_path_rate=0.4, drop_rate=0.2, gating="sigmoid"
        )
        torch.manual_seed(4)
        features, selections = model.forward_with_selections(x)
        loss = sum(f.square().sum() for f in features.values()) + sum(s.score.square().sum() for s in selections)
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        reference.close(gradients[1][name], gradient, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("freeze_at", [3, 4])
def test_frozen_stages_keep_their_gates_and_draw_no_noise(freeze_at):
    model = nano_spt(freeze_at=freeze_at, noise="logistic", drop_path_rate=0.5)
    frozen = model.layers[: freeze_at - 1]
    assert all(not p.requires_grad and not m.training for m in frozen for p in m.parameters())
    assert all(p.requires_grad for p in model.output_gates.parameters())
    _, first = model.forward_with_selections(x := images())
    _, second = model.forward_with_selections(x)
    same = [
        torch.equal(a.keep_mask, b.keep_mask) for a, b in zip(first, second) if a.keep_mask is not None and a.stage == 3
    ]
    assert all(same) == (freeze_at == 4)


def test_training_after_inference_mode_works():
    """Geometry is cached; a tensor made in inference mode may not be saved for a backward pass."""
    model = nano_spt(window_size=5, position="relative_bias")
    x = images(1, 88, 104)
    with torch.inference_mode():
        model.eval()(x)
    model.train()(x)["res5"].sum().backward()


def test_plain_forward_is_the_second_entry_without_sizes():
    model = nano_spt().eval()
    x = images()
    features, _ = model.forward_with_selections(x)
    assert all(torch.equal(value, features[name]) for name, value in model(x).items())


def test_training_through_plain_forward_warns_once_that_gates_are_unsupervised(caplog):
    spt_module.warn_unsupervised.cache_clear()
    model = nano_spt()
    with caplog.at_level(logging.WARNING, logger=spt_module.__name__):
        model.eval()(images())
        model.train().forward_with_selections(images())
        assert not caplog.records
        model(images())
        model(images())
    (record,) = caplog.records
    assert "no selection loss supervises its gates" in record.getMessage()


def test_an_untrained_model_keeps_every_token():
    for gating in GATINGS:
        model = SPT(**SIZES, gating=gating).eval()
        _, selections = model.forward_with_selections(images(dtype=torch.float32))
        assert all(s.keep_mask.all() for s in selections if s.keep_mask is not None)


def test_gates_keep_their_own_start_where_other_layers_take_swins():
    for gating, start in (("sigmoid", 5.0), ("none", math.log(0.2 / 0.8))):
        model = SPT(**SIZES, gating=gating, gate_prior=0.2)
        gates = [module for module in model.modules() if isinstance(module, SelectionGate)]
        # Two blocks in each of two stages, and the extra gate.
        assert len(gates) == 5
        for gate in gates:
            assert not gate.proj.weight.any()
            assert gate.proj.bias.item() == pytest.approx(start)


def test_oracle_reads_the_labels_of_its_stride():
    model, labels = nano_spt(select="oracle"), labels_of()
    _, selections = model.forward_with_selections(images(), None, labels)
    for selection in selections:
        assert selection.block is None or torch.equal(selection.keep_mask, labels[selection.stride] == 1)


@pytest.mark.parametrize(
    "labels", [None, {}, {16: torch.ones(2, 4, 4, dtype=torch.uint8)}], ids=["none", "empty", "one_stride"]
)
def test_oracle_without_labels_is_an_error(labels):
    with pytest.raises(ValueError, match="select='oracle' expects selection labels at this stride"):
        nano_spt(select="oracle").forward_with_selections(images(), None, labels)


@pytest.mark.parametrize("stages", [(), (0, 3), (5,)])
def test_stages_that_do_not_exist_are_an_error(stages):
    with pytest.raises(ValueError, match=r"spa_stages expects some of 1 to 4. Got (.|\n)*HINT: .*build_swin_backbone"):
        SPT(**SIZES, spa_stages=stages)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_training_step_on_the_gpu(dtype, position):
    model = nano_spt(torch.float32, position=position, noise="logistic", embed_dim=32).cuda()
    x = images(dtype=torch.float32).cuda()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        features, selections = model.forward_with_selections(x, [(64, 64), (40, 33)])
        loss = sum(f.float().square().mean() for f in features.values())
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(s.score.dtype == torch.float32 for s in selections)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_gives_what_the_cpu_gives():
    model, x = nano_spt(torch.float32, embed_dim=32, num_heads=(1, 2, 4, 8)).eval(), images(dtype=torch.float32)
    with torch.no_grad():
        expected = model(x)
        actual = model.cuda()(x.cuda())
    for name in FEATURES:
        reference.close(actual[name].cpu(), expected[name], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("kind", [SPT, DAT, DynamicSwin, SparseViT, SvitGatedSwin])
def test_backbones_that_select_refuse_a_stride_that_selections_do_not_have(kind):
    with pytest.raises(ValueError, match=rf"{kind.__name__}\(patch_size=\) expects 4.*Got 2"):
        kind(patch_size=2)


def test_random_selection_is_every_blocks_own_and_the_images_own_in_evaluation():
    """As in training; the same tokens in all blocks would be a worse control."""
    model = nano_spt(select="random", keep_ratio=0.25, depths=(1, 1, 4, 1)).eval()
    x = images(2, 96, 64)
    selections = [one for one in model.forward_with_selections(x)[1] if one.stage == 3 and one.keep_mask is not None]
    kept = torch.stack([one.keep_mask[0] for one in selections])
    assert all(not torch.equal(kept[0], other) for other in kept[1:])
    alone = [one for one in model.forward_with_selections(x[1:])[1] if one.stage == 3 and one.keep_mask is not None]
    assert all(torch.equal(one.keep_mask[1], other.keep_mask[0]) for one, other in zip(selections, alone))
