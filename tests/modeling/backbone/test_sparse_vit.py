"""SparseViT: Swin where nothing is skipped, loops where windows are."""

import pytest
import torch

from tests import reference, slow_windows
from tests.modeling.nano import FEATURES, SIZES, images, nano_cfg, nano_sparse_vit, nano_swin

from detectron2.modeling import build_backbone, build_model  # isort: skip

from spt_d2.config import validate_spt_config  # isort: skip
from spt_d2.modeling import SparseViT  # isort: skip
from spt_d2.ops.selection import split_selections  # isort: skip
from spt_d2.weights.fit import fit_to_model  # isort: skip

DENSE = [[0.0]] * 4


@pytest.mark.parametrize("height, width", [(64, 64), (50, 77), (3, 5)])
def test_with_nothing_skipped_it_is_swin_bit_for_bit(height, width):
    swin, model = nano_swin().double(), nano_sparse_vit(pruning_ratios=DENSE)
    model.load_state_dict(swin.state_dict(), strict=True)
    image = images(2, height, width)
    features, selections = model.forward_with_selections(image, [(height, width), (2, 3)])
    assert selections == []
    for name, expected in swin(image).items():
        assert torch.equal(features[name], expected) and torch.equal(model(image)[name], expected)


@pytest.mark.parametrize("height, width", [(64, 64), (50, 77), (33, 130), (3, 5)])
def test_equals_loops_over_windows(height, width):
    model = nano_sparse_vit()
    image = images(2, height, width)
    sizes = [(height, width), (max(height // 2, 1), max(width // 3, 1))]
    features, selections = model.forward_with_selections(image, sizes)
    x, expected, run = model.patch_embed(image), {}, []
    for i, stage in enumerate(model.layers):
        stride = 4 * 2**i
        shown = [(-(-h // stride), -(-w // stride)) for h, w in sizes]
        x, inside = slow_windows.run_stage(stage, list(model.pruning_ratios[i]), x, shown)
        run += [(i + 1, block, mask) for block, mask in inside]
        expected[FEATURES[i]] = getattr(model, f"norm{i}")(x).permute(0, 3, 1, 2)
        x = x if stage.downsample is None else stage.downsample(x)
    assert list(features) == list(FEATURES)
    for name, feature in features.items():
        reference.close(feature, expected[name])
    assert [(s.stage, s.block) for s in selections] == [(stage, block) for stage, block, _ in run]
    for selection, (_, _, mask) in zip(selections, run):
        assert torch.equal(selection.keep_mask, mask & selection.valid)
        assert selection.score.shape == selection.keep_mask.shape


def test_no_parameter_is_added_to_swins():
    assert nano_sparse_vit().state_dict().keys() == nano_swin().state_dict().keys()


def test_equal_sizes_give_every_image_its_own_result():
    model, image = nano_sparse_vit().eval(), images(3, 60, 90)
    together, selections = model.forward_with_selections(image, [(60, 90)] * 3)
    for b in range(3):
        alone, own = model.forward_with_selections(image[b : b + 1], [(60, 90)])
        for name in FEATURES:
            reference.close(together[name][b], alone[name][0])
        assert all(torch.equal(a.keep_mask[b], o.keep_mask[0]) for a, o in zip(selections, own))


def test_mixed_sizes_keep_no_padding_and_each_its_share():
    model, sizes = nano_sparse_vit().eval(), [(64, 96), (30, 40), (64, 20)]
    _, selections = model.forward_with_selections(images(3, 64, 96), sizes)
    for selection in selections:
        assert not (selection.keep_mask & ~selection.valid).any()
        assert (selection.keep_mask.flatten(1).sum(1) > 0).all()
        assert selection.window_counts[0] >= max(selection.window_counts[1:])
    # Unshifted windows stand where they do without a batch: stage 1 keeps 30 % fewer of 24 and of 2 x 3.
    assert selections[0].window_counts == (16, 4, 5)
    for image, (height, width) in zip(split_selections(selections, sizes, (64, 96)), sizes):
        for block in image.blocks:
            assert block.keep_mask.shape == (-(-height // block.stride), -(-width // block.stride))
            assert block.kept == int(block.keep_mask.sum())


def test_every_parameter_gets_a_gradient_at_drawn_ratios():
    for seed in range(4):
        torch.manual_seed(seed)
        model = nano_sparse_vit(sample_ratios=True).train()
        sum(f.square().sum() for f in model(images(1, 32, 48)).values()).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_training_draws_ratios_in_every_pass_and_evaluation_keeps_to_its_own():
    model, image = nano_sparse_vit(sample_ratios=True), images(2, 96, 96)
    counts = [[s.window_counts for s in model.forward_with_selections(image)[1]] for _ in range(6)]
    assert any(count != counts[0] for count in counts)
    torch.manual_seed(5)
    first = model(image)["res5"]
    torch.manual_seed(5)
    assert torch.equal(model(image)["res5"], first)
    model.eval()
    plain = nano_sparse_vit().eval()
    for name, feature in model(image).items():
        assert torch.equal(feature, model(image)[name]) and torch.equal(feature, plain(image)[name])


def test_frozen_stages_keep_to_their_own_ratios():
    model = nano_sparse_vit(sample_ratios=True, freeze_at=2).train()
    counts = {
        tuple(s.window_counts for s in model.forward_with_selections(images(1, 64, 64))[1] if s.stage == 1)
        for _ in range(8)
    }
    assert counts == {((11,),)}


def test_recomputed_activations_give_the_same_gradients():
    image, gradients = images(2, 48, 40), []
    for use_checkpoint in (False, True):
        model = nano_sparse_vit(use_checkpoint=use_checkpoint, drop_path_rate=0.5, sample_ratios=True)
        torch.manual_seed(2)
        sum(f.square().sum() for f in model(image).values()).backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients):
        reference.close(recomputed, plain)


def test_ratios_can_be_changed_and_bad_ones_change_nothing():
    model = nano_sparse_vit().eval()
    model.set_pruning_ratios([[0.0], [0.0], [0.8], [0.0]])
    assert model.pruning_ratios == ((0.0,), (0.0,), (0.8, 0.8), (0.0, 0.0))
    assert {s.stage for s in model.forward_with_selections(images())[1]} == {3}
    for ratios in ([[0.1]] * 3, [[0.1], [0.1], [0.5, 0.1], [0.1]]):
        with pytest.raises(ValueError, match="stages. Got 3|stage 3 expects values that do not decrease"):
            model.set_pruning_ratios(ratios)
        assert model.pruning_ratios == ((0.0,), (0.0,), (0.8, 0.8), (0.0, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_features_are_swins_dtype(dtype):
    model, swin, image = nano_sparse_vit(torch.float32), nano_swin(), images(2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        features, expected = model(image), swin(image)
    for name, feature in features.items():
        assert feature.dtype == expected[name].dtype and torch.isfinite(feature).all()
    model.bfloat16()(image.bfloat16())["res5"].sum().backward()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"pruning_ratios": [[0.1]] * 3}, r"the ratios of each stage.\n  pruning_ratios: \[\[0.1\](.|\n)*depths"),
        ({"pruning_ratios": [[0.1], [0.1], [0.1] * 3, [0.1]]}, "pruning_ratios of stage 3 expects 1 to 2 values"),
        ({"ratio_choices": ()}, "ratio_choices expects shares"),
        ({"ratio_choices": (0.5, 1.0)}, "ratio_choices expects shares"),
    ],
)
def test_arguments_that_make_no_sense_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        SparseViT(**{**SIZES, "pruning_ratios": DENSE, **values})


def test_sizes_of_the_default_are_those_of_swin_t():
    with torch.device("meta"):
        model = SparseViT()
    assert sum(p.numel() for p in model.parameters()) == 27_520_698
    assert model.pruning_ratios == ((0.3,) * 2, (0.0,) * 2, (0.1, 0.1, 0.2, 0.2, 0.2, 0.2), (0.0,) * 2)


@pytest.mark.parametrize(
    "key, value",
    [
        ("PRUNING_RATIOS", [[0.1]]),
        ("PRUNING_RATIOS", [[0.1], [0.1], [0.5, 0.2], [0.1]]),
        ("PRUNING_RATIOS", [0.1, 0.1, 0.1, 0.1]),
        ("RATIO_CHOICES", []),
        ("RATIO_CHOICES", [1.0]),
        ("NUM_HEADS", [3, 3, 3, 3]),
    ],
)
def test_a_bad_key_is_told_by_its_name(key, value):
    cfg = nano_cfg("build_sparse_vit_fpn_backbone")
    cfg.INPUT.SPT.STRIDES = [4, 8, 16, 32]
    validate_spt_config(cfg)
    cfg.MODEL.SPARSE_VIT[key] = value
    with pytest.raises(ValueError, match=f"MODEL.SPARSE_VIT.{key} expects"):
        validate_spt_config(cfg)


@pytest.mark.parametrize("sampled, strides", [(False, [4, 16, 32]), (True, [4, 8, 16, 32])])
def test_labels_are_asked_for_where_windows_are_skipped(sampled, strides):
    cfg = nano_cfg("build_sparse_vit_fpn_backbone")
    cfg.MODEL.SPARSE_VIT.SAMPLE_RATIOS = sampled
    cfg.INPUT.SPT.STRIDES = strides
    validate_spt_config(cfg)
    for stride in strides:
        cfg.INPUT.SPT.STRIDES = [other for other in strides if other != stride]
        with pytest.raises(ValueError, match=r"INPUT.SPT.STRIDES expects the strides"):
            validate_spt_config(cfg)


def test_the_builder_gives_what_the_config_says():
    cfg = nano_cfg("build_sparse_vit_backbone")
    assert build_backbone(cfg).pruning_ratios == ((0.3,), (0.0,), (0.2, 0.4), (0.5,))


def test_the_weights_of_a_dense_detector_fit_as_they_are():
    dense, model = (build_model(nano_cfg(f"build_{kind}_fpn_backbone")) for kind in ("swin", "sparse_vit"))
    weights = dense.state_dict()
    fitted, report = fit_to_model(weights, model.state_dict())
    assert fitted is weights and report is None
    published = {f"{name.removeprefix('backbone.bottom_up.')}": value for name, value in weights.items()}
    published = {name: value for name, value in published.items() if name.startswith(("patch_embed", "layers", "norm"))}
    fitted, report = fit_to_model(published, model.state_dict())
    loud = [entry for entry in report.entries if entry.loud]
    assert not loud and {name for name in fitted if "bottom_up" in name} == {
        name for name in model.state_dict() if "bottom_up" in name
    }
