"""The Deformable Attention Transformer as a backbone."""

import pytest
import torch

from tests import reference
from tests.modeling.nano import FEATURES, SIZES, images, nano_dat

from spt_d2.layers.deformable_stage import DeformableBlock  # isort: skip
from spt_d2.modeling import DAT  # isort: skip
from spt_d2.ops import deformable  # isort: skip


def features(model: DAT, image: torch.Tensor) -> torch.Tensor:
    return torch.cat([value.flatten(1) for value in model(image).values()], dim=1)


@pytest.mark.parametrize(
    "depths, count, published", [((2, 2, 6, 2), 27_551_482, 29e6), ((2, 2, 18, 2), 48_932_746, 50e6)]
)
def test_published_sizes_have_the_parameters_of_the_authors(depths, count, published):
    with torch.device("meta"):
        model = DAT(depths=depths)
    # Those of the authors' classes, counted, with output norms of 2,880 in place of theirs of 1,536 and of the
    # classifier's 769,000; the published numbers are rounded.
    assert sum(p.numel() for p in model.parameters()) == count
    assert count - 2880 + 1536 + 769_000 == pytest.approx(published, rel=0.025)


def test_deformable_blocks_stand_where_they_are_published():
    with torch.device("meta"):
        model = DAT()
    deformable_blocks = [
        (i + 1, j)
        for i, stage in enumerate(model.layers)
        for j, block in enumerate(stage.blocks)
        if isinstance(block, DeformableBlock)
    ]
    assert deformable_blocks == [(3, 1), (3, 3), (3, 5), (4, 1)]
    third, fourth = model.layers[2].blocks[1].attn, model.layers[3].blocks[1].attn
    assert (third.options.groups, fourth.options.groups) == (3, 6)
    assert third.relative_position_bias_table.shape == (12, 27, 27)
    assert fourth.relative_position_bias_table.shape == (24, 13, 13)
    assert [block.attn.shift_size for block in model.layers[0].blocks] == [0, 4]


@pytest.mark.parametrize("height, width", [(64, 96), (33, 130), (3, 5)])
def test_any_size_gives_every_parameter_a_gradient(height, width):
    model = nano_dat()
    maps = model(images(2, height, width))
    assert [tuple(value.shape[2:]) for value in maps.values()] == [
        (-(-height // stride), -(-width // stride)) for stride in (4, 8, 16, 32)
    ]
    sum(value.square().mean() for value in maps.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("stages", [(1,), (2, 4), (4, 3, 2, 1)])
def test_any_stages_may_be_deformable(stages):
    model = nano_dat(depths=(2, 2, 2, 2), deformable_stages=stages)
    found = {
        i + 1
        for i, stage in enumerate(model.layers)
        if any(isinstance(block, DeformableBlock) for block in stage.blocks)
    }
    assert found == set(stages) and model.deformable_stages == tuple(sorted(stages))
    assert features(model, images(1, 40, 64)).isfinite().all()


def test_it_takes_no_decision():
    model = nano_dat()
    maps, selections = model.forward_with_selections(images(), [(64, 64), (40, 30)], {})
    assert selections == [] and list(maps) == list(FEATURES)


def test_an_image_of_a_batch_has_the_maps_of_its_own_batch_of_one():
    model, batch = nano_dat().eval(), images(3, 64, 96)
    with torch.no_grad():
        alone = torch.cat([features(model, image[None]) for image in batch])
        reference.close(features(model, batch), alone)


def test_padding_is_part_of_an_images_map_and_other_images_are_not():
    """As in the authors' detectors: what lies beside an image matters, what else lies in the batch does not."""
    model = nano_dat().eval()
    batch = images(2, 64, 96)
    batch[0, :, 40:], batch[0, :, :, 50:] = 0.0, 0.0
    with torch.no_grad():
        together = features(model, batch)
        reference.close(together[:1], features(model, batch[:1]))
        small = model(batch[:1, :, :40, :50])["res5"]
        assert not torch.allclose(model(batch[:1])["res5"][:, :, :2, :2], small)


def test_cutting_the_queries_changes_nothing(monkeypatch):
    model, batch, found = nano_dat(), images(2, 96, 128), []
    for limit in (deformable.MAX_PAIRS, 500):
        monkeypatch.setattr(deformable.deformable_attention, "__kwdefaults__", {"dropout": 0.0, "max_pairs": limit})
        out = features(model, batch)
        found.append((out, reference.gradients(out, **dict(model.named_parameters()))))
    reference.close(found[1][0], found[0][0])
    for name, gradient in found[1][1].items():
        reference.close(gradient, found[0][1][name], atol=1e-9, rtol=1e-8)


def test_evaluation_is_deterministic_whatever_is_dropped_in_training():
    noisy, plain = nano_dat(drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5), nano_dat()
    plain.load_state_dict(noisy.state_dict())
    image = images(2, 48, 40)
    assert not torch.equal(features(noisy, image), features(noisy, image))
    assert torch.equal(features(noisy.eval(), image), features(plain, image))


def test_recomputed_activations_give_the_same_gradients():
    image, gradients = images(2, 48, 40), []
    for use_checkpoint in (False, True):
        model = nano_dat(use_checkpoint=use_checkpoint, drop_path_rate=0.5, drop_rate=0.2, attn_drop_rate=0.2)
        torch.manual_seed(2)
        features(model, image).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients):
        reference.close(recomputed, plain)


def test_frozen_stages_do_not_learn():
    model = nano_dat(freeze_at=4, drop_rate=0.5)
    model.train()
    features(model, images(1)).sum().backward()
    frozen = [model.patch_embed, *model.layers[:3]]
    assert not any(p.requires_grad for module in frozen for p in module.parameters())
    assert all(p.grad is not None for p in model.layers[3].parameters())


def test_mixed_precision_runs_and_keeps_finite_gradients():
    model, image = nano_dat(torch.float32), images(2, 64, 64, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(image)
    plain = model(image)
    for name in FEATURES:
        reference.close(mixed[name].float(), plain[name], atol=0.3, rtol=0.3)
    sum(value.float().square().mean() for value in mixed.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_state_dict_makes_a_round_trip():
    first, second = nano_dat(), DAT(**{**SIZES, "groups": (1, 1, 2, 2)}).double().eval()
    second.load_state_dict(first.state_dict(), strict=True)
    image = images(1)
    assert torch.equal(features(first.eval(), image), features(second, image))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"deformable_stages": ()}, r"some of 1 to 4. Got \(\).\nHINT: a backbone with no such stage is Swin"),
        ({"deformable_stages": (3, 5)}, "some of 1 to 4"),
        (
            {"groups": (1, 1)},
            r"one value for each stage.\n  depths        : \(1, 1, 2, 2\)\n  groups        : \(1, 1\)",
        ),
        ({"groups": (1, 1, 3, 2)}, "num_heads one of the groups"),
        ({"offset_kernels": (9, 7, 4, 3)}, "an odd number"),
    ],
)
def test_arguments_that_make_no_sense_are_errors(values, message):
    with pytest.raises(ValueError, match=message):
        nano_dat(**values)
