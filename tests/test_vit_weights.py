"""Weights of other ViTs compute here what they compute there; what has no place here is said."""

import pytest
import torch
from torch import Tensor, nn

from tests import reference
from tests.modeling.nano import VIT_SIZES, images, nano_cfg

from detectron2.modeling import ViT as Detectron2ViT  # isort: skip
from detectron2.modeling import build_model  # isort: skip

from spt_d2.checkpoint import SelectionCheckpointer  # isort: skip
from spt_d2.modeling import ViT  # isort: skip
from spt_d2.ops.positions import resize_positions  # isort: skip
from spt_d2.vit_weights import vit_checkpoint, vit_state_dict  # isort: skip


def dense(**values) -> ViT:
    return ViT(**{**VIT_SIZES, "drop_path_rate": 0.0, "spa_blocks": (), **values}).double().eval()


def timm_vit(**values) -> nn.Module:
    timm = pytest.importorskip("timm.models.vision_transformer")
    sizes = {"img_size": 64, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "num_classes": 5}
    return reference.randomise_(timm.VisionTransformer(**{**sizes, **values})).double().eval()


def torchvision_vit() -> nn.Module:
    vision = pytest.importorskip("torchvision.models.vision_transformer")
    model = vision.VisionTransformer(64, 16, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
    return reference.randomise_(model).double().eval()


def without_class_token(model: nn.Module, x: Tensor) -> Tensor:
    """torchvision's layers over the patches alone, at the positions of patches."""
    tokens = model.conv_proj(x).flatten(2).transpose(1, 2) + model.encoder.pos_embedding[:, 1:]
    return model.encoder.ln(model.encoder.layers(tokens))


def to_map(tokens: Tensor) -> Tensor:
    return tokens.unflatten(1, (4, 4)).permute(0, 3, 1, 2)


def test_timms_weights_compute_what_they_compute_there():
    theirs, ours = timm_vit(class_token=False, global_pool=""), dense()
    assert ours.load_state_dict(vit_state_dict(theirs.state_dict())) == ([], [])
    x = images()
    reference.close(ours(x)["res4"], to_map(theirs.forward_features(x)))


def test_of_a_class_token_the_position_is_left_out_and_the_head_dropped():
    theirs = timm_vit()
    translated = vit_state_dict(theirs.state_dict())
    assert set(translated) == set(dense().state_dict())
    assert torch.equal(translated["pos_embed"], theirs.pos_embed[:, 1:])


@pytest.mark.parametrize("old", [False, True], ids=["new_names", "old_names"])
def test_torchvisions_weights_compute_what_they_compute_there(old):
    theirs, ours = torchvision_vit(), dense()
    weights = theirs.state_dict()
    if old:
        renamed = (("mlp.0.", "mlp.linear_1."), ("mlp.3.", "mlp.linear_2."))
        weights = {n.replace(*renamed[0]).replace(*renamed[1]): value for n, value in weights.items()}
    assert ours.load_state_dict(vit_state_dict(weights)) == ([], [])
    x = images()
    reference.close(ours(x)["res4"], to_map(without_class_token(theirs, x)))


def test_detectron2s_weights_compute_what_they_compute_there():
    """Under the names of its detectors, whose ViT has no norm at its end."""
    sizes = {"img_size": 64, "embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0, "window_size": 0}
    theirs = Detectron2ViT(**sizes, pretrain_img_size=64, norm_layer=lambda dim: nn.LayerNorm(dim, eps=1e-6))
    reference.randomise_(theirs).double().eval()
    weights = {f"backbone.net.{name}": value for name, value in theirs.state_dict().items()}
    weights["backbone.simfp_4.0.weight"] = torch.zeros(1)
    ours = dense()
    missing, unexpected = ours.load_state_dict(vit_state_dict({"model": weights}), strict=False)
    assert missing == ["norm.weight", "norm.bias"] and not unexpected
    ours.norm = nn.Identity()
    x = images()
    reference.close(ours(x)["res4"], theirs(x)["last_feat"])


@pytest.mark.parametrize("img_size", [64, 96])
def test_a_detector_starts_from_them_through_model_weights(img_size, tmp_path):
    cfg = nano_cfg("build_vit_fpn_backbone")
    model, theirs = build_model(cfg), timm_vit(img_size=img_size).float()
    gate = model.state_dict()["backbone.net.blocks.1.gate.proj.bias"].clone()
    path = tmp_path / "start.pth"
    torch.save(theirs.state_dict(), path)
    SelectionCheckpointer(model).load(str(path))
    for name in ("blocks.0.attn.qkv.weight", "blocks.2.mlp.fc2.bias", "norm.weight", "patch_embed.proj.weight"):
        assert torch.equal(model.state_dict()[f"backbone.net.{name}"], theirs.state_dict()[name])
    assert torch.equal(model.state_dict()["backbone.net.blocks.1.gate.proj.bias"], gate)
    # The grid of the model is 4 x 4, that of images of 96 px 6 x 6.
    expected = resize_positions(theirs.pos_embed[:, 1:].detach(), (4, 4)).flatten(1, 2)
    assert torch.equal(model.backbone.bottom_up.pos_embed, expected)


def test_a_detector_for_another_image_size_keeps_its_gates_its_pyramid_and_its_heads(tmp_path):
    small = nano_cfg("build_vit_fpn_backbone")
    large = small.clone()
    large.MODEL.VIT.PRETRAIN_IMAGE_SIZE = 96
    model, again = build_model(small), build_model(large)
    reference.randomise_(model)
    torch.save({"model": model.state_dict()}, tmp_path / "own.pth")
    SelectionCheckpointer(again).load(str(tmp_path / "own.pth"))
    theirs = model.state_dict()
    for name, value in again.state_dict().items():
        if name.endswith("pos_embed"):
            torch.testing.assert_close(value, resize_positions(theirs[name], (6, 6)).flatten(1, 2))
        else:
            assert torch.equal(value, theirs[name]), name


def test_gates_go_with_a_backbone_under_another_name_and_are_left_out_where_there_are_none():
    selecting = ViT(**VIT_SIZES)
    weights = {f"backbone.{name}": value for name, value in selecting.state_dict().items()}
    wanted = {f"backbone.net.{name}": value for name, value in selecting.state_dict().items()}
    assert set(vit_checkpoint(weights, wanted)) == set(wanted)
    assert set(vit_checkpoint(weights, dense().state_dict())) == set(dense().state_dict())


def test_a_detectors_own_checkpoint_is_taken_unchanged(tmp_path):
    model, again = (build_model(nano_cfg("build_vit_fpn_backbone")) for _ in range(2))
    torch.save({"model": {f"module.{name}": value for name, value in model.state_dict().items()}}, tmp_path / "own.pth")
    SelectionCheckpointer(again).load(str(tmp_path / "own.pth"))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "values, name",
    [
        ({"init_values": 1e-5}, "blocks.0.ls1.gamma"),
        ({"qk_norm": True}, "blocks.0.attn.q_norm.weight"),
        ({"reg_tokens": 2}, "reg_token"),
        ({"pre_norm": True}, "norm_pre.weight"),
    ],
)
def test_a_vit_of_another_function_is_an_error_that_names_a_parameter(values, name):
    with pytest.raises(ValueError, match=rf"expects a ViT of plain pre-norm blocks(.|\n)*  {name}\n(.|\n)*HINT"):
        vit_state_dict(timm_vit(**values).state_dict())


def test_no_vit_is_an_error():
    with pytest.raises(ValueError, match="expects the state dict of one ViT, with 'patch_embed.proj.weight'"):
        vit_state_dict(nn.Linear(2, 2).state_dict())
    with pytest.raises(ValueError, match="expects a model with one ViT. Got 0"):
        vit_checkpoint(timm_vit().state_dict(), nn.Linear(2, 2).state_dict())


@pytest.mark.parametrize(
    "values, message",
    [
        ({"embed_dim": 32}, r"patch_embed.proj.weight: \(32, 3, 16, 16\) in the checkpoint, \(16, 3, 16, 16\) here"),
        ({"depth": 4}, r"blocks.3.norm1.weight: \(16,\) in the checkpoint, none here"),
        ({"depth": 2}, r"blocks.2.norm1.weight: none in the checkpoint, \(16,\) here"),
    ],
)
def test_weights_of_another_size_are_an_error_that_names_both(values, message):
    with pytest.raises(ValueError, match=rf"model's width, depth and patches \(MODEL.VIT\)(.|\n)*{message}"):
        vit_checkpoint(timm_vit(**values).state_dict(), dense().state_dict())
