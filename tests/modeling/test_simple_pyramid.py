"""The simple pyramid is Detectron2's, padding mended and selections handed through."""

import pytest
import torch

from tests.modeling.nano import images, nano_vit

from detectron2.modeling import SimpleFeaturePyramid  # isort: skip
from detectron2.modeling.backbone.fpn import LastLevelMaxPool  # isort: skip
from detectron2.structures import ImageList  # isort: skip

from spt_d2.modeling import SelectionSimplePyramid  # isort: skip


def pyramid(**vit) -> SelectionSimplePyramid:
    return SelectionSimplePyramid(nano_vit(torch.float32, **vit), 8, top_block=LastLevelMaxPool()).eval()


def test_levels_are_detectron2s():
    ours = pyramid(spa_blocks=())
    factors = (4.0, 2.0, 1.0, 0.5)
    theirs = SimpleFeaturePyramid(nano_vit(torch.float32, spa_blocks=()), "res4", 8, factors, LastLevelMaxPool())
    theirs.load_state_dict(ours.state_dict())
    x = images(2, 64, 96, torch.float32)
    actual, expected = ours(x), theirs.eval()(x)
    assert list(actual) == list(expected) == ["p2", "p3", "p4", "p5", "p6"]
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert ours.output_shape() == theirs.output_shape()


def test_levels_without_norms_work():
    plain = SelectionSimplePyramid(nano_vit(torch.float32), 8, norm="").train()
    levels = plain.forward_with_selections(images(2, 64, 96, torch.float32))[0]
    sum(level.square().mean() for level in levels.values()).backward()
    assert list(levels) == ["p2", "p3", "p4", "p5"]
    assert all(p.grad is not None for p in plain.parameters())


def test_images_are_padded_to_the_stride_of_p5():
    model = pyramid()
    image = torch.randn(3, 40, 70)
    padded = ImageList.from_tensors([image], padding_constraints=model.padding_constraints).tensor
    assert padded.shape == ImageList.from_tensors([image], model.size_divisibility).tensor.shape
    assert padded.shape[-2:] == (64, 96)
    assert [tuple(level.shape[-2:]) for level in model(padded).values()] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]


def test_selections_of_the_network_are_handed_through():
    model = pyramid()
    x, sizes = images(dtype=torch.float32), [(64, 64), (33, 40)]
    features, selections = model.forward_with_selections(x, sizes)
    _, expected = model.bottom_up.forward_with_selections(x, sizes)
    assert [(s.stage, s.block) for s in selections] == [(1, 1), (1, 2)]
    assert all(torch.equal(mine.score, other.score) for mine, other in zip(selections, expected))
    assert not selections[0].valid.all()
    assert all(torch.equal(model(x)[name], model.forward_with_selections(x)[0][name]) for name in features)


def test_labels_reach_the_oracle():
    labels = {16: torch.zeros(2, 4, 4, dtype=torch.uint8)}
    labels[16][0, 1, 2] = 1
    _, selections = pyramid(select="oracle").forward_with_selections(images(dtype=torch.float32), None, labels)
    assert [int(s.keep_mask.sum()) for s in selections] == [1, 1]


def test_a_map_of_another_stride_is_an_error_that_names_the_cure():
    with pytest.raises(ValueError, match="expects a map at stride 16. Got stride 8.\nHINT: MODEL.VIT.PATCH_SIZE 16"):
        SelectionSimplePyramid(nano_vit(patch_size=8), 8)
