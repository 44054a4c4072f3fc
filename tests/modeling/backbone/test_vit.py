"""The plain ViT: equal to timm's while dense; what it selects, packs and leaves alone once it selects."""

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests import reference
from tests.modeling.nano import VIT_SIZES, images, nano_cfg, nano_vit

from detectron2.layers import ShapeSpec  # isort: skip
from detectron2.modeling import build_backbone  # isort: skip

from spt_d2.layers.gate import SelectionGate  # isort: skip
from spt_d2.layers.select_pack_attention import FFN_TOKENS, GATES, PROJ_TOKENS  # isort: skip
from spt_d2.modeling import ViT  # isort: skip
from spt_d2.modeling.backbone import spt as spt_module  # isort: skip
from spt_d2.ops.padding import PACKINGS  # isort: skip
from spt_d2.ops.gating import GATINGS  # isort: skip
from spt_d2.ops.selection import NOISES, SELECTS  # isort: skip
from spt_d2.vit_weights import vit_state_dict  # isort: skip


def labels_of(batch: int = 2, height: int = 64, width: int = 64) -> dict[int, Tensor]:
    return {s: (torch.rand(batch, height // s, width // s) < 0.4).to(torch.uint8) for s in (8, 16, 32)}


def timm_vit(**values):
    """timm's, with no class token and a norm at its end, every parameter drawn."""
    timm = pytest.importorskip("timm.models.vision_transformer")
    sizes = {"img_size": 64, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "num_classes": 0}
    model = timm.VisionTransformer(**{**sizes, "class_token": False, "global_pool": "", **values})
    return reference.randomise_(model).double()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("height, width", [(64, 64), (96, 48)])
def test_dense_it_is_timms(height, width, qkv_bias, training):
    theirs = timm_vit(qkv_bias=qkv_bias, dynamic_img_size=True).train(training)
    model = ViT(**VIT_SIZES, drop_path_rate=0.0, qkv_bias=qkv_bias, spa_blocks=()).double().train(training)
    model.load_state_dict(vit_state_dict(theirs.state_dict()))
    image = images(2, height, width).requires_grad_()
    actual = model(image)["res4"]
    expected = theirs.forward_features(image).unflatten(1, (height // 16, width // 16)).permute(0, 3, 1, 2)
    # timm resizes positions in float32.
    tolerance = {} if height == width else {"atol": 1e-5, "rtol": 1e-5}
    reference.close(actual, expected, **tolerance)
    own, weights = dict(model.named_parameters()), dict(theirs.named_parameters())
    truth = reference.gradients(expected, image=image, **weights)
    for name, gradient in reference.gradients(actual, image=image, **{n: own[n] for n in weights}).items():
        reference.close(gradient, truth[name], **tolerance)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("spa_blocks", [(1, 2), (0, 1, 2), (1,)], ids=str)
def test_everything_kept_it_is_the_dense_one(spa_blocks, training):
    dense = nano_vit(spa_blocks=()).train(training)
    model = nano_vit(spa_blocks=spa_blocks, select="all").train(training)
    missing, unexpected = model.load_state_dict(dense.state_dict(), strict=False)
    assert not unexpected and all(".gate." in name for name in missing)
    image = images(2, 64, 96).requires_grad_()
    actual, expected = model(image)["res4"], dense(image)["res4"]
    reference.close(actual, expected)
    own, weights = dict(model.named_parameters()), dict(dense.named_parameters())
    truth = reference.gradients(expected, image=image, **weights)
    for name, gradient in reference.gradients(actual, image=image, **{n: own[n] for n in weights}).items():
        reference.close(gradient, truth[name])


def test_blocks_that_select_do_so_and_others_do_not():
    model = nano_vit(spa_blocks=(2, 0))
    features, selections = model.forward_with_selections(images(2, 64, 96))
    assert list(features) == ["res4"] and features["res4"].shape == (2, 16, 4, 6)
    assert [(s.stage, s.block, s.stride) for s in selections] == [(1, 0, 16), (1, 2, 16)]
    for selection in selections:
        assert selection.keep_mask.shape == (2, 4, 6) and 0 < selection.keep_mask.sum() < 48
        assert selection.layout.seqlens == selection.layout.counts
    assert not torch.equal(selections[0].keep_mask, selections[1].keep_mask)
    assert not hasattr(model.blocks[1], "gate")


def test_the_last_two_thirds_select_by_default():
    assert ViT(**{**VIT_SIZES, "depth": 7}).spa_blocks == (2, 3, 4, 5, 6)


def test_one_decision_is_shared_by_all_blocks():
    model = nano_vit(gate="per_stage", noise="logistic", spa_blocks=(1, 2))
    _, (first, *others) = model.forward_with_selections(images())
    for other in others:
        assert torch.equal(first.keep_mask, other.keep_mask) and torch.equal(first.score, other.score)
    assert model.blocks[1].gate is not None and model.blocks[2].gate is None


# No image sees another, nobody selects padding.


@pytest.mark.parametrize("segment", ["image", "container", "window"])
@pytest.mark.parametrize("select", ["gate", "topk"])
def test_an_image_never_sees_its_batch(segment, select):
    model = nano_vit(segment=segment, select=select)
    x = images(3, 64, 96)
    features, selections = model.forward_with_selections(x)
    alone = [model.forward_with_selections(image[None]) for image in x]
    reference.close(features["res4"], torch.cat([maps["res4"] for maps, _ in alone]), atol=1e-9, rtol=1e-8)
    for i, selection in enumerate(selections):
        assert torch.equal(selection.keep_mask, torch.cat([s[i].keep_mask for _, s in alone]))
    before = features["res4"]
    x[0] = torch.randn(3, 64, 96)
    reference.close(model(x)["res4"][1:], before[1:], atol=1e-9, rtol=1e-8)
    reference.close(model(x[[2, 0, 1]])["res4"][[0, 2]], before[[2, 1]], atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("noise", ["none", "logistic"])
def test_padding_is_never_selected(select, noise):
    model = nano_vit(select=select, noise=noise)
    _, selections = model.forward_with_selections(images(), [(64, 64), (33, 17)], {16: torch.ones(2, 4, 4).byte()})
    for selection in selections:
        assert selection.valid[0].all() and selection.valid[1].sum() == 3 * 2
        assert not (selection.keep_mask & ~selection.valid).any()


@pytest.mark.parametrize("select", ["gate", "topk", "all"])
def test_where_every_block_selects_no_token_sees_padding(select):
    model = nano_vit(select=select, spa_blocks=(0, 1, 2))
    sizes, x = [(64, 64), (32, 48)], images()
    first, _ = model.forward_with_selections(x, sizes)
    x[1, :, 32:], x[1, :, :, 48:] = 7.0, -7.0
    second, _ = model.forward_with_selections(x, sizes)
    reference.close(second["res4"][1, :, :2, :3], first["res4"][1, :, :2, :3])
    assert not torch.allclose(second["res4"][1, :, 2:], first["res4"][1, :, 2:])


# Nothing, everything, one token, an image with nothing.

EDGES = {
    "everything": [(64, 64), (64, 64)],
    "nothing": [(0, 0), (0, 0)],
    "one_token": [(1, 1), (0, 0)],
    "an_empty_image": [(64, 64), (0, 0)],
    "ragged": [(64, 20), (33, 64)],
}


@settings(max_examples=60)
@given(
    st.fixed_dictionaries(
        {
            "select": st.sampled_from(SELECTS),
            "gating": st.sampled_from(GATINGS),
            "gate": st.sampled_from(GATES),
            "position": st.sampled_from(["none", "rope", "conv"]),
            "proj_tokens": st.sampled_from(PROJ_TOKENS),
            "ffn_tokens": st.sampled_from(FFN_TOKENS),
            "noise": st.sampled_from(NOISES),
            "segment": st.sampled_from(["image", "container", "shared", "window"]),
            "packing": st.sampled_from(PACKINGS),
            "spa_blocks": st.sampled_from([(0,), (1, 2), (0, 1, 2)]),
            "drop_path_rate": st.sampled_from([0.0, 0.3]),
        }
    ),
    st.sampled_from(list(EDGES)),
    st.sampled_from([-30.0, -0.1, 30.0]),
)
def test_any_options_train_every_parameter_at_the_edges(values, edge, gate_bias):
    model = nano_vit(torch.float32, **values)
    for module in model.modules():
        if isinstance(module, SelectionGate):
            torch.nn.init.constant_(module.proj.bias, gate_bias)
    x, labels = images(dtype=torch.float32), labels_of()
    features, selections = model.forward_with_selections(x, EDGES[edge], labels)
    features["res4"].square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    kept = sum(int(s.keep_mask.sum()) for s in selections)
    if edge == "nothing" or (values["select"] == "gate" and gate_bias < -1 and values["noise"] == "none"):
        assert kept == 0
    model.eval()
    with torch.no_grad():
        features, _ = model.forward_with_selections(x, EDGES[edge], labels)
    assert torch.isfinite(features["res4"]).all()


@pytest.mark.parametrize("height, width", [(1, 1), (16, 16), (5, 37)])
def test_images_of_any_size_work(height, width):
    model = nano_vit()
    features = model(images(2, height, width))
    assert features["res4"].shape == (2, 16, -(-height // 16), -(-width // 16))
    features["res4"].square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("patch_size, name", [(8, "res3"), (32, "res5")])
def test_the_map_is_named_after_its_stride(patch_size, name):
    model = nano_vit(patch_size=patch_size)
    assert {n: (s.stride, s.channels) for n, s in model.output_shape().items()} == {name: (patch_size, 16)}
    features, selections = model.forward_with_selections(images(), None, None)
    assert features[name].shape[-1] == 64 // patch_size and selections[0].stride == patch_size


# Training and evaluation.


@pytest.mark.parametrize("select", ["gate", "topk", "oracle", "all"])
def test_evaluation_is_deterministic_whatever_is_dropped_in_training(select):
    rates = {"drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5, "noise": "logistic"}
    noisy, plain = nano_vit(select=select, **rates), nano_vit(select=select)
    plain.load_state_dict(noisy.state_dict())
    x, labels = images(), labels_of()
    trained = [noisy.forward_with_selections(x, None, labels)[0]["res4"] for _ in range(2)]
    assert not torch.equal(*trained)
    outs = [model.eval().forward_with_selections(x, None, labels)[0]["res4"] for model in (noisy, noisy, plain)]
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def test_recomputed_activations_give_the_same_gradients():
    x, gradients = images(), []
    for use_checkpoint in (False, True):
        model = nano_vit(use_checkpoint=use_checkpoint, noise="logistic", drop_path_rate=0.4, drop_rate=0.2)
        torch.manual_seed(4)
        features, selections = model.forward_with_selections(x)
        (features["res4"].square().sum() + sum(s.score.square().sum() for s in selections)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        reference.close(gradients[1][name], gradient, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("freeze_at", [0, 1, 3])
def test_freeze_at_is_honoured(freeze_at):
    model = nano_vit(freeze_at=freeze_at, drop_rate=0.5, drop_path_rate=0.5).train()
    start = {"patch_embed", "pos_embed"} if freeze_at else set()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.split(".")[0] in start or any(name.startswith(f"blocks.{i}.") for i in range(freeze_at - 1))
    }
    assert frozen == expected
    assert [block.training for block in model.blocks] == [i >= freeze_at - 1 for i in range(3)]
    assert model.pos_drop.training == (freeze_at == 0)


def test_an_untrained_model_keeps_every_token():
    for gating in GATINGS:
        _, selections = ViT(**VIT_SIZES, gating=gating).eval().forward_with_selections(images(dtype=torch.float32))
        assert selections and all(s.keep_mask.all() for s in selections)


def test_training_through_plain_forward_warns_once_that_gates_are_unsupervised(caplog):
    spt_module.warn_unsupervised.cache_clear()
    with caplog.at_level(logging.WARNING, logger=spt_module.__name__):
        nano_vit(spa_blocks=()).train()(images())
        nano_vit().eval()(images())
        assert not caplog.records
        for _ in range(2):
            nano_vit().train()(images())
    (record,) = caplog.records
    assert "The ViT backbone is trained through its plain forward()" in record.getMessage()


def test_oracle_reads_the_labels_of_its_stride():
    labels = labels_of()
    _, selections = nano_vit(select="oracle").forward_with_selections(images(), None, labels)
    assert all(torch.equal(selection.keep_mask, labels[16] == 1) for selection in selections)
    with pytest.raises(ValueError, match="select='oracle' expects selection labels at this stride"):
        nano_vit(select="oracle").forward_with_selections(images(), None, {32: labels[32]})


def test_the_builder_builds_what_the_constructor_builds():
    cfg = nano_cfg("build_vit_backbone")
    cfg.MODEL.SPT.SELECT, cfg.MODEL.SPT.FFN_TOKENS = "topk", "light"
    built = build_backbone(cfg, ShapeSpec(channels=3)).eval()
    sizes = {**VIT_SIZES, "drop_path_rate": 0.0, "spa_blocks": (1, 2), "window_size": 4}
    model = ViT(**sizes, select="topk", ffn_tokens="light").eval()
    assert model.options == built.options
    model.load_state_dict(built.state_dict())
    x = images(dtype=torch.float32)
    assert torch.equal(model(x)["res4"], built(x)["res4"])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"patch_size": 12}, "patch_size expects a power of two above 1, in pixels. Got 12"),
        ({"depth": 0}, "depth expects at least 1 block. Got 0"),
        ({"pretrain_image_size": 60}, "pretrain_image_size expects a multiple of patch_size 16, in pixels. Got 60"),
        ({"spa_blocks": (1, 3)}, r"spa_blocks expects distinct numbers of 0 to 2. Got \(1, 3\)"),
        ({"spa_blocks": (1, 1)}, r"spa_blocks expects distinct numbers of 0 to 2. Got \(1, 1\)"),
        ({"freeze_at": 5}, "freeze_at expects 0 to 4. Got 5"),
        ({"num_heads": 3}, "expects dim to be a multiple of num_heads"),
        ({"position": "relative_bias"}, "Got segment='image'"),
    ],
)
def test_arguments_that_cannot_be_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        ViT(**{**VIT_SIZES, **values})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_training_step_on_the_gpu(dtype):
    model = nano_vit(torch.float32, embed_dim=64, noise="logistic").cuda()
    x = images(dtype=torch.float32).cuda()
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        features, selections = model.forward_with_selections(x, [(64, 64), (40, 33)])
        loss = features["res4"].float().square().mean()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(s.score.dtype == torch.float32 for s in selections)
