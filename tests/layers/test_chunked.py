"""Blocks that run a few windows at a time are the function of whole maps: outputs, gradients, what is dropped."""

import contextlib
import warnings

import pytest
import torch
from torch import Tensor, nn

from spt_d2.layers import chunked
from spt_d2.layers.block import SelectPackBlock, SwinBlock
from spt_d2.layers.mlp import Mlp
from spt_d2.layers.patch import PatchEmbed, PatchMerging
from spt_d2.layers.select_pack_attention import SelectPackOptions
from spt_d2.layers.stage import SwinStage
from spt_d2.ops.packing import PackedLayout

SIZES = [(14, 21), (13, 20), (7, 7), (3, 5), (1, 1), (29, 2)]


def randomised(module: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with no parameter left at zero or one, where a mistake would not show."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def whole_maps():
    """In this context a hook looks into all modules, so that they run as they stand."""
    return nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)


def both_ways(module: nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What a module gives in chunks, and over whole maps with gradients asked for."""
    before = [x.clone() for x in inputs]
    with torch.no_grad():
        assert chunked.runs_in_chunks(inputs[0], module)
        in_chunks = module(*inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before)), "an input was written into"
    with torch.enable_grad(), whole_maps():
        assert not chunked.runs_in_chunks(inputs[0], module)
        whole = module(*inputs)
    return in_chunks, whole


@pytest.fixture(params=(1, 60, 10_000), ids="chunks of {} tokens".format)
def chunk(request, monkeypatch) -> int:
    """Tokens of a chunk: less than a window, one window, and more than there are."""
    monkeypatch.setattr(chunked, "_CHUNK_TOKENS", request.param)
    monkeypatch.setattr(chunked, "_CHUNK_TOKENS_TRAINING", request.param)
    monkeypatch.setattr(chunked, "_CHUNK_ELEMENTS", 0)
    return request.param


@pytest.mark.parametrize("batch", (1, 3))
@pytest.mark.parametrize("shift", (0, 3))
@pytest.mark.parametrize("size", SIZES)
def test_swin_block_at_inference(chunk, size, shift, batch):
    block = randomised(SwinBlock(8, 2, 7, shift, qkv_bias=shift == 0))
    x = torch.randn(batch, *size, 8, dtype=torch.float64)
    before = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(block(x), block.whole_map(x), rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before), "the input was written into"


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("shift", (0, 3))
@pytest.mark.parametrize("size", SIZES)
def test_swin_block_and_its_gradients(chunk, size, shift, training):
    # An image's branches are dropped whole, the same ones for the same random numbers.
    block = randomised(SwinBlock(8, 2, 7, shift, drop_path=0.5)).train(training)
    x = torch.randn(4, *size, 8, dtype=torch.float64, requires_grad=True)
    outward = torch.randn(4, *size, 8, dtype=torch.float64)
    results = []
    for forward in (block, block.whole_map):
        torch.manual_seed(1)
        out = forward(x)
        results.append([out, *torch.autograd.grad(out, [x, *block.parameters()], outward)])
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


def test_dropout_drops_in_chunks_too():
    block = SwinBlock(8, 2, drop=0.5, attn_drop=0.5).train()
    x = torch.randn(1, 14, 14, 8)
    torch.manual_seed(0)
    first, second = block(x), block(x)
    assert not torch.equal(first, second) and torch.equal(block.eval()(x), block(x))
    # Of the attention weights alone.
    block = SwinBlock(8, 2, attn_drop=0.5).train()
    assert not torch.equal(block(x), block(x))


@pytest.mark.parametrize("size", SIZES)
def test_patch_merging(chunk, size):
    in_chunks, whole = both_ways(randomised(PatchMerging(4)), torch.randn(2, *size, 4, dtype=torch.float64))
    torch.testing.assert_close(in_chunks, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_maps_channels_first(chunk, size):
    norm = randomised(nn.LayerNorm(6))
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    with torch.no_grad():
        out = chunked.channels_first(x, norm)
    torch.testing.assert_close(out, norm(x).permute(0, 3, 1, 2), rtol=1e-12, atol=1e-12)
    assert out.is_contiguous()


@pytest.mark.parametrize("score", (-9.0, 0.0, 9.0), ids=("nothing kept", "some kept", "all kept"))
@pytest.mark.parametrize("position", ("none", "relative_bias"))
@pytest.mark.parametrize("ffn_tokens", ("all", "light", "selected"))
@pytest.mark.parametrize("proj_tokens", ("selected", "all"))
def test_select_pack_block(chunk, score, position, ffn_tokens, proj_tokens):
    options = SelectPackOptions(position=position, ffn_tokens=ffn_tokens, proj_tokens=proj_tokens, threshold=0.5)
    block = randomised(SelectPackBlock(8, 2, options, shift_size=3))
    nn.init.constant_(block.gate.proj.bias, score)
    x, valid = torch.randn(2, 9, 10, 8, dtype=torch.float64), torch.ones(2, 9, 10, dtype=torch.bool)
    (in_chunks, _, layout), (whole, _, _) = both_ways(block, x, valid)
    torch.testing.assert_close(in_chunks, whole, rtol=1e-12, atol=1e-12)
    assert (layout.num_tokens > 0) == (score > -9) and (layout.num_tokens < 180) == (score < 9)


@pytest.mark.parametrize("score", (-9.0, 0.0, 9.0), ids=("nothing kept", "some kept", "all kept"))
@pytest.mark.parametrize("ffn_tokens", ("all", "light", "selected"))
@pytest.mark.parametrize("packing", ("containers", "padded"))
@pytest.mark.parametrize("training", (True, False))
def test_ffn_of_a_select_pack_block_and_its_gradients(chunk, score, ffn_tokens, packing, training, monkeypatch):
    options = SelectPackOptions(ffn_tokens=ffn_tokens, packing=packing, threshold=0.5)
    block = randomised(SelectPackBlock(8, 2, options, drop_path=0.5)).train(training)
    nn.init.constant_(block.gate.proj.bias, score)
    x, valid = torch.randn(4, 9, 10, 8, dtype=torch.float64, requires_grad=True), torch.ones(4, 9, 10).bool()
    outward, results, tokens = torch.randn_like(x), [], []
    forward = Mlp.forward

    def counted(self, part: Tensor) -> Tensor:
        tokens.append(part.numel() // part.shape[-1])
        return forward(self, part)

    monkeypatch.setattr(Mlp, "forward", counted)
    for context in (contextlib.nullcontext, whole_maps):
        torch.manual_seed(1)
        with context():
            out = block(x, valid)[0]
        results.append([out, *torch.autograd.grad(out, [x, *block.parameters()], outward, allow_unused=True)])
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
    # Once as a whole; before it in chunks of nearly one size, and without any where there is nothing.
    whole = tokens.pop()
    assert sum(tokens) == whole and len(tokens) == max(-(-whole // chunk), 1) and max(tokens) <= max(chunk, 1)


@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (130, 8), (0, 49, 8), (3, 49, 8), (2, 9, 10, 8)], ids=str)
@pytest.mark.parametrize("contiguous", (True, False))
def test_ffn_of_tokens_of_any_shape_and_its_gradients(chunk, shape, contiguous):
    """Kept tokens, windows, maps: every block's goes through it."""
    norm, mlp = randomised(nn.LayerNorm(8)), randomised(Mlp(8, 32))
    x = torch.randn(shape, dtype=torch.float64)
    x = (x if contiguous else x.transpose(0, -1).contiguous().transpose(0, -1)).requires_grad_()
    outward, inputs = torch.randn(shape, dtype=torch.float64), [x, *norm.parameters(), *mlp.parameters()]
    out, expected = chunked.ffn(x, norm, mlp), mlp(norm(x))
    assert out.shape == shape
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    gradients = (torch.autograd.grad(value, inputs, outward) for value in (out, expected))
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(chunked.ffn(x, norm, mlp), expected, rtol=1e-12, atol=1e-12)


def test_a_trace_of_the_ffn_is_of_any_number_of_tokens(chunk):
    norm, mlp = (randomised(part).requires_grad_(False) for part in (nn.LayerNorm(8), Mlp(8, 32)))
    few, many = torch.randn(70, 8, dtype=torch.float64), torch.randn(200, 8, dtype=torch.float64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda x: chunked.ffn(x, norm, mlp), few)
        assert "aten::chunk" not in str(traced.graph) and "aten::cat" not in str(traced.graph)
        torch.testing.assert_close(traced(many), mlp(norm(many)))


@pytest.mark.parametrize("segment", ("container", "shared", "window"))
@pytest.mark.parametrize("position", ("none", "rope", "conv", "relative_bias"))
@pytest.mark.parametrize("gating", ("none", "sigmoid", "centred"))
@pytest.mark.parametrize("shift", (0, 2))
def test_select_pack_block_attends_chunk_by_chunk(chunk, segment, position, gating, shift, monkeypatch):
    options = SelectPackOptions(window_size=4, segment=segment, position=position, gating=gating, threshold=0.5)
    block = randomised(SelectPackBlock(8, 2, options, shift_size=shift))
    x, chunks = torch.randn(3, 9, 10, 8, dtype=torch.float64), []
    # Kept are three quarters of two images, and nothing of a third.
    nn.init.constant_(block.gate.proj.bias, 9.0)
    valid = torch.rand(3, 9, 10) < torch.tensor([0.75, 0.0, 0.75])[:, None, None]
    split = PackedLayout.split
    monkeypatch.setattr(PackedLayout, "split", lambda *arguments: chunks.extend(parts := split(*arguments)) or parts)
    (in_chunks, _, layout), (whole, _, _) = both_ways(block, x, valid)
    torch.testing.assert_close(in_chunks, whole, rtol=1e-12, atol=1e-12)
    assert 90 < layout.num_tokens < 180
    expected = {1: layout.num_containers, 10_000: 1}.get(chunk)
    assert len(chunks) == expected if expected else 1 < len(chunks) < layout.num_containers


def test_select_pack_block_in_reduced_precision_keeps_its_residual_stream(chunk):
    block = SelectPackBlock(8, 2, SelectPackOptions()).eval()
    x, valid = torch.randn(2, 9, 10, 8), torch.ones(2, 9, 10, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        (in_chunks, _, _), (whole, _, _) = both_ways(block, x, valid)
    assert in_chunks.dtype == torch.float32
    torch.testing.assert_close(in_chunks, whole, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("place", ("attn", "attn.qkv", "attn.proj", "proj_drop"))
def test_hooks_within_a_select_pack_block_see_all_packed_tokens(place, chunk):
    block, seen = SelectPackBlock(8, 2, SelectPackOptions()).eval(), []
    block.get_submodule(place).register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    with torch.no_grad():
        _, _, layout = block(torch.randn(2, 9, 10, 8), torch.ones(2, 9, 10, dtype=torch.bool))
    assert seen == [layout.num_tokens]


def test_what_is_not_finite_stays_in_its_image(chunk):
    block = SelectPackBlock(8, 2, SelectPackOptions(select="all")).eval()
    x, valid = torch.randn(3, 9, 10, 8), torch.ones(3, 9, 10, dtype=torch.bool)
    # The last token of an image, which its empty slots repeat.
    x[1, 8, 9] = float("nan")
    with torch.no_grad():
        out, decision, _ = block(x, valid)
        alone = block(x[::2], valid[::2])[0]
    assert decision.keep_mask[1, 8, 9] and out[1].isnan().any(dim=-1).sum() > 1
    torch.testing.assert_close(out[::2], alone)


@pytest.mark.parametrize("size", [(8, 12), (9, 5), (1, 1)])
def test_patch_embedding_is_a_linear_layer_on_patches(size):
    embed = randomised(PatchEmbed(4, 3, 6))
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    padded = nn.functional.pad(image, (0, -size[1] % 4, 0, -size[0] % 4))
    patches = padded.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)
    expected = embed.norm(patches @ embed.proj.weight.flatten(1).t() + embed.proj.bias)
    torch.testing.assert_close(embed(image), expected, rtol=1e-12, atol=1e-12)
    assert embed(image).is_contiguous()


def test_what_drops_or_is_trained_does_not_run_in_chunks():
    block, x = SwinBlock(8, 2), torch.zeros(1, 7, 7, 8)
    with torch.no_grad():
        assert not chunked.runs_in_chunks(x, block.train()) and chunked.runs_in_chunks(x, block.eval())
        assert not chunked.runs_in_chunks(x.to("meta"), block)
        # Stochastic depth alone, as for Monte Carlo estimates.
        block.drop_path.train()
        assert not chunked.runs_in_chunks(x, block)
    assert not chunked.runs_in_chunks(x, block.eval())


@pytest.mark.parametrize("kind", ("swin", "spt"))
def test_branches_are_dropped_at_inference_where_only_their_dropping_is_in_training(kind):
    if kind == "swin":
        block, inputs = SwinBlock(8, 2, drop_path=0.5), ()
    else:
        block, inputs = SelectPackBlock(8, 2, SelectPackOptions(), drop_path=0.5), (torch.ones(64, 7, 7).bool(),)
    block = randomised(block)
    block.drop_path.train()
    with torch.no_grad():
        x = torch.randn(64, 7, 7, 8, dtype=torch.float64)
        out = block(x, *inputs)
    unchanged = ((out if kind == "swin" else out[0]) == x).flatten(1).all(dim=1).sum()
    assert 0 < unchanged < 48


def test_a_map_in_another_memory_layout():
    options = SelectPackOptions(proj_tokens="all")
    block = randomised(SelectPackBlock(8, 2, options))
    x, valid = torch.randn(2, 8, 9, 10, dtype=torch.float64).permute(0, 2, 3, 1), torch.ones(2, 9, 10).bool()
    with torch.no_grad():
        torch.testing.assert_close(block(x, valid)[0], block(x.contiguous(), valid)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("place", ("attn", "attn.qkv", "norm1", "norm2", "mlp.fc1", "everywhere"))
def test_hooks_within_a_block_see_whole_maps(place, training):
    """Attention maps and class activation maps are taken by such hooks."""
    block, x, seen = SwinBlock(8, 2, shift_size=3).train(training), torch.randn(2, 14, 21, 8), []

    def hook(module, inputs, output):
        seen.append((module, inputs[0], inputs[0].clone(), output))

    if place == "everywhere":
        handle = nn.modules.module.register_module_forward_hook(hook)
    else:
        handle = block.get_submodule(place).register_forward_hook(hook)
    with torch.no_grad(), handle:
        out = block(x)
    with torch.no_grad():
        torch.testing.assert_close(out, block(x))
    of_attn = [seen_of for seen_of in seen if seen_of[0] is (block.attn if place == "everywhere" else seen[0][0])]
    assert len(of_attn) == 1 and of_attn[0][1].numel() // of_attn[0][1].shape[-1] == 2 * 14 * 21
    assert all(torch.equal(given, copy) for _, given, copy, _ in seen), "what a hook was given was written into"


def test_attention_that_was_put_in_its_place_is_called():
    class Nothing(nn.Module):
        def forward(self, x):
            return torch.zeros_like(x)

    block, x = SwinBlock(8, 2).eval(), torch.randn(1, 7, 7, 8)
    block.attn = Nothing()
    with torch.no_grad():
        torch.testing.assert_close(block(x), x + block.mlp(block.norm2(x)))


@pytest.mark.parametrize("segment", ("container", "shared", "window", "image"))
@pytest.mark.parametrize("container_size", (0, 17, 51))
def test_padded_tokens_are_attended_at_inference_as_in_training(segment, container_size):
    """Empty slots of a row lie behind the tokens of each of its containers."""
    options = SelectPackOptions(
        window_size=4, segment=segment, container_size=container_size, packing="padded", threshold=0.5
    )
    block = randomised(SelectPackBlock(8, 2, options))
    nn.init.constant_(block.gate.proj.bias, 9.0)
    x = torch.randn(3, 9, 10, 8, dtype=torch.float64)
    valid = torch.rand(3, 9, 10) < torch.tensor([0.75, 0.1, 1.0])[:, None, None]
    in_chunks, whole = both_ways(block, x, valid)
    torch.testing.assert_close(in_chunks[0], whole[0], rtol=1e-12, atol=1e-12)


def test_a_trace_of_a_select_pack_block_is_the_block(chunk):
    block = SelectPackBlock(8, 2, SelectPackOptions(select="all")).eval().requires_grad_(False)
    inputs = torch.randn(1, 9, 10, 8), torch.ones(1, 9, 10, dtype=torch.bool)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(lambda *inputs: block(*inputs)[0], inputs, check_trace=False)
        torch.testing.assert_close(traced(*inputs), block(*inputs)[0])


class DoubledNorm(nn.LayerNorm):
    """Of another class: what it does with a whole map is its own affair."""

    def forward(self, x):
        assert x.dim() == 4
        return 2 * super().forward(x)


class OneLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.only = nn.Linear(8, 8)

    def forward(self, x):
        return self.only(x)


def replaced(block: nn.Module, change: str) -> nn.Module:
    if change == "layer":
        block.mlp.fc1 = nn.Sequential(block.mlp.fc1)
    if change == "mlp":
        block.mlp = OneLayer()
    if change == "norm":
        block.norm2 = DoubledNorm(8)
    if change == "patched":
        forward = block.mlp.forward
        block.mlp.forward = lambda x: 2 * forward(x)
    if change == "patched attention":
        forward = block.attn.forward
        block.attn.forward = lambda *inputs: 2 * forward(*inputs)
    if change == "dropout":
        block.proj_drop = nn.Softsign()
    if change == "patched dropout":
        block.proj_drop.forward = lambda x: 2 * x
    if change == "patched drop path":
        block.drop_path.forward = lambda x: 2 * x
        block.drop_path.packed = lambda x, *inputs: 2 * x
    return randomised(block)


@pytest.mark.parametrize("change", ("layer", "mlp", "norm", "patched", "patched attention"))
def test_a_swin_block_with_other_parts_runs_them(change):
    block = replaced(SwinBlock(8, 2, shift_size=3), change)
    x = torch.randn(2, 9, 10, 8, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(block(x), block.whole_map(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "change",
    ("layer", "mlp", "norm", "patched", "patched attention", "dropout", "patched dropout", "patched drop path"),
)
def test_a_select_pack_block_with_other_parts_runs_them(change):
    block = replaced(SelectPackBlock(8, 2, SelectPackOptions()), change)
    inputs = torch.randn(2, 9, 10, 8, dtype=torch.float64), torch.ones(2, 9, 10, dtype=torch.bool)
    with torch.no_grad():
        at_inference = block(*inputs)[0]
    with whole_maps():
        torch.testing.assert_close(at_inference, block(*inputs)[0].detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(at_inference, block(*inputs)[0].detach(), rtol=1e-12, atol=1e-12)


def test_a_block_that_was_taken_out_of_a_stage():
    torch.manual_seed(0)
    stage = SwinStage(dim=8, depth=3, num_heads=2, window_size=7, drop_path=[0.0] * 3, downsample=False).eval()
    stage.blocks[1] = nn.Identity()
    x = torch.randn(1, 14, 14, 8)
    before = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(stage(x), stage.blocks[2](stage.blocks[0](x)))
    assert torch.equal(x, before)


def test_a_chunk_is_as_large_as_the_cache_allows_and_no_smaller_than_pays():
    with torch.no_grad():
        assert chunked.chunk_tokens(384) == 1562 and chunked.chunk_tokens(3072) == 1024
    assert chunked.chunk_tokens(384) == 3136


@pytest.mark.parametrize("size", SIZES)
def test_a_block_in_place_gives_the_same_where_it_was_given(chunk, size):
    block = randomised(SwinBlock(8, 2, 7, 3))
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = block(x)
        out = block(x, in_place=True)
    assert torch.equal(out, expected) and out.data_ptr() == x.data_ptr()
    # Not in training, where the backward pass needs what was given.
    x = torch.randn(2, *size, 8, dtype=torch.float64, requires_grad=True)
    before = x.detach().clone()
    block(x, in_place=True).sum().backward()
    assert torch.equal(x, before)


def test_a_stage_writes_over_nothing_that_others_may_hold():
    torch.manual_seed(0)
    stage = SwinStage(dim=8, depth=4, num_heads=2, window_size=7, drop_path=[0.0] * 4, downsample=False).eval()
    x = torch.randn(1, 14, 14, 8)
    before, given, kept = x.clone(), [], []
    with torch.no_grad():
        expected = [x]
        for block in stage.blocks:
            expected.append(block(expected[-1]))
        torch.testing.assert_close(stage(x), expected[-1])
        handles = [block.register_forward_hook(lambda _, inputs, output: kept.append(output)) for block in stage.blocks]
        stage(x)
        for handle in handles:
            handle.remove()
        handles = [block.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])) for block in stage.blocks]
        stage(x)
        for handle in handles:
            handle.remove()
        # After a block, what it was given; of all modules; by a function in the place of its own.
        stage.blocks[1].register_forward_hook(lambda _, inputs, output: given.append(inputs[0]))
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, inputs, output: kept.append(output) if isinstance(module, SwinBlock) else None
        )
        stage(x)
        handle.remove()
        forward = stage.blocks[2].forward
        stage.blocks[2].forward = lambda x: given.append(x) or forward(x)
        stage(x)
    assert torch.equal(x, before)
    wanted_kept = [*expected[1:], *expected[1:]]
    wanted_given = [*expected[:-1], expected[1], expected[1], expected[2]]
    for tensor, wanted in zip([*kept, *given], [*wanted_kept, *wanted_given], strict=True):
        torch.testing.assert_close(tensor, wanted)
