"""Every backbone of the paper, at its real width and depth: counts equal torch's and fvcore's counters."""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("detectron2")
from detectron2.modeling.backbone.swin import SwinTransformer

from spt_d2.analysis import image_macs, nominal_macs
from spt_d2.model_zoo.variants import IMAGE_SIZE, READINGS, SIZES, VARIANTS, Variant
from spt_d2.modeling import SPT, Swin
from spt_d2.ops.selection import split_selections

# Nowhere a multiple of a patch, a merging or a window.
SMALL = (42, 71)
SELECTING = {
    **{name: variant for name, variant in VARIANTS.items() if variant.selects},
    **{f"{title}, T": Variant("T", extra, options=options) for title, extra, options in READINGS if options},
}

DENSE = {name: variant for name, variant in VARIANTS.items() if not variant.selects}


@pytest.fixture
def unset_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large models without the seconds that drawing their weights takes: no count depends on a weight."""
    for name in ("trunc_normal_", "kaiming_uniform_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)


def build(variant: Variant, **options) -> Swin:
    size = SIZES[variant.size]
    options |= {key.lower(): value for key, value in variant.options}
    kind = SPT if variant.selects else Swin
    return kind(embed_dim=size.embed_dim, num_heads=size.num_heads, depths=variant.depths, **options)


@pytest.mark.usefixtures("unset_weights")
@pytest.mark.parametrize("name", SELECTING)
def test_executed_equals_half_of_torchs_flops_in_training_and_evaluation(name):
    model = build(SELECTING[name], select="random", keep_ratio=0.23)
    for training in (True, False):
        model.train(training)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _, selections = model.forward_with_selections(torch.zeros(1, 3, *SMALL))
        (image,) = split_selections(selections, [SMALL], SMALL)
        assert image_macs(model, image).executed == counter.get_total_flops() / 2


@pytest.mark.usefixtures("unset_weights")
@pytest.mark.parametrize("name", DENSE)
def test_dense_variants_equal_half_of_torchs_flops_in_training_and_evaluation(name):
    with torch.device("meta"):
        model = build(DENSE[name])
        images = torch.zeros(1, 3, *IMAGE_SIZE)
    for training in (True, False):
        model.train(training)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(images)
        assert nominal_macs(model, IMAGE_SIZE, 1.0).executed == counter.get_total_flops() / 2


@pytest.mark.usefixtures("unset_weights")
@pytest.mark.parametrize("budget", (0, 1, 5))
def test_executed_counts_what_a_token_budget_leaves(budget):
    model = SPT(embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 4), window_size=3, select="all")
    for stage in model.layers[2:]:
        for block in stage.blocks:
            block.options = type(block.options)(**{**vars(block.options), "token_budget": budget})
    for training in (True, False):
        model.train(training)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            _, selections = model.forward_with_selections(torch.zeros(1, 3, 75, 102))
        (image,) = split_selections(selections, [(75, 102)], (75, 102))
        assert image_macs(model, image).executed == counter.get_total_flops() / 2
        limited = budget and not training
        assert all((block.kept <= budget) == bool(limited) for block in image.blocks if block.block is not None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("unset_weights")
@pytest.mark.parametrize(
    # fvcore has to run the model, on a CPU: at the size of COCO's images only the smallest.
    "size, image_size",
    [*((size, SMALL) for size in SIZES), ("T", IMAGE_SIZE)],
)
def test_dense_swin_of_every_size_equals_fvcore_less_its_layer_norm(size, image_size):
    from fvcore.nn import FlopCountAnalysis

    published = SIZES[size]
    arguments = {"embed_dim": published.embed_dim, "depths": published.depths, "num_heads": published.num_heads}
    # Without drop path, for which detectron2's Swin needs another package; it is no matrix product.
    model = SwinTransformer(**arguments, drop_path_rate=0.0).eval()
    analysis = FlopCountAnalysis(model, torch.zeros(1, 3, *image_size))
    counts = analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    ours = nominal_macs(build(Variant(size, selects=False)), image_size, 1.0)
    assert ours.dense == sum(counts.values()) - counts["layer_norm"]
