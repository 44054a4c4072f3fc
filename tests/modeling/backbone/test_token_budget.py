"""MODEL.SPT.TOKEN_BUDGET: no image has more tokens in any block, and what an image gets depends on it alone."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from spt_d2.config import validate_spt_config
from spt_d2.modeling import build_spt_backbone
from tests import reference
from tests.modeling.nano import images, nano_cfg, nano_spt


@pytest.mark.parametrize("gate", ("per_block", "per_stage"))
@pytest.mark.parametrize("select", ("gate", "all", "topk"))
def test_no_block_keeps_more_of_an_image_than_the_budget(gate, select):
    free = nano_spt(gate=gate, select=select, keep_ratio=0.9, spa_stages=(2, 3, 4)).eval()
    limited = nano_spt(gate=gate, select=select, keep_ratio=0.9, spa_stages=(2, 3, 4), token_budget=5).eval()
    x = images(2, 96, 64)
    counts = [
        [s.layout.counts for s in model.forward_with_selections(x)[1] if s.layout is not None]
        for model in (free, limited)
    ]
    assert max(max(block) for block in counts[0]) > 5
    assert all(kept <= 5 for block in counts[1] for kept in block)
    # The first block sees what the one without a budget sees, and cuts it.
    assert counts[1][0] == tuple(min(kept, 5) for kept in counts[0][0])


@pytest.mark.parametrize("segment", ("container", "shared", "image"))
def test_with_select_all_the_budget_fixes_every_shape(segment):
    """The gate decides which tokens, and no image how many: what fixed shapes, such as a CUDA graph's, call for."""
    model = nano_spt(select="all", token_budget=5, segment=segment).eval()

    several = [images(2, 96, 64) * scale for scale in (0.1, 1.0, 10.0)]
    found = [
        [one for one in model.forward_with_selections(x)[1] if one.layout is not None] for x in several
    ]  # of a gate on a stage's output nothing is packed
    shapes = [[(one.layout.counts, one.layout.seqlens, one.layout.num_containers) for one in each] for each in found]
    assert shapes[0] == shapes[1] == shapes[2]
    assert any(not torch.equal(a.keep_mask, b.keep_mask) for a, b in zip(found[0], found[2]))
    for one in found[1]:
        highest = one.score.flatten(1).topk(5).indices
        assert one.layout.counts == (5, 5) and one.keep_mask.flatten(1).gather(1, highest).all()


def test_a_padded_image_gives_what_it_gives_alone():
    """Every stage selects, so that no dense window sees the padding."""
    model = nano_spt(token_budget=3, spa_stages=(1, 2, 3, 4), multi_scale=False).eval()
    x = images(2, 64, 96)
    x[1, :, 32:], x[1, :, :, 64:] = 0, 0
    both, selections = model.forward_with_selections(x, [(64, 96), (32, 64)])
    alone, _ = model.forward_with_selections(x[1:, :, :32, :64], [(32, 64)])
    for name, value in alone.items():
        reference.close(both[name][1:, :, : value.shape[2], : value.shape[3]], value)
    assert all(not (one.keep_mask & ~one.valid).any() and max(one.layout.counts) <= 3 for one in selections)


def test_a_large_budget_changes_nothing_and_training_has_none():
    free, limited = nano_spt(), nano_spt(token_budget=10**6)
    x = images(1)
    for name, value in free.eval()(x).items():
        assert torch.equal(limited.eval()(x)[name], value)
    tight = nano_spt(token_budget=1).train()
    for name, value in free.train().forward_with_selections(x)[0].items():
        assert torch.equal(tight.forward_with_selections(x)[0][name], value)


def test_the_key_reaches_every_block_and_a_negative_one_is_an_error():
    cfg = nano_cfg("build_spt_fpn_backbone")
    cfg.MODEL.SPT.TOKEN_BUDGET = 17
    model = build_spt_backbone(cfg, ShapeSpec(channels=3))
    assert {block.options.token_budget for stage in model.layers[2:] for block in stage.blocks} == {17}
    cfg.MODEL.SPT.TOKEN_BUDGET = -1
    with pytest.raises(ValueError, match="MODEL.SPT.TOKEN_BUDGET expects 0"):
        validate_spt_config(cfg)
