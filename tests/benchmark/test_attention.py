"""The parts of a block add up to the block, and stages run at the planted share beside dense ones."""

import pytest
import torch

pytest.importorskip("detectron2", reason="detectron2 is not installed")

from spt_d2.benchmark import attention as attention_module
from spt_d2.benchmark.attention import attention_cases
from spt_d2.benchmark.block_parts import PARTS, BlockParts, shares
from spt_d2.benchmark.cases import time_cases
from spt_d2.benchmark.planting import Planting, share
from spt_d2.benchmark.record import Row
from spt_d2.layers.drop_path import DropPath
from tests.benchmark.nano import NANO
from tests.modeling.nano import nano_spt

CPU = torch.device("cpu")


@pytest.mark.parametrize("number", (0, 1))
@pytest.mark.parametrize("keep_ratio", (0.05, 0.3, 1.0))
@torch.no_grad()
def test_the_parts_one_after_the_other_are_the_block(number, keep_ratio, device):
    model = nano_spt(torch.float32).to(device).eval()
    planting = Planting(model)
    planting.use(keep_ratio, 2, (128, 160))
    block = model.layers[2].blocks[number]
    assert block.shift_size == 2 * number
    x = torch.randn(2, 8, 10, 32, device=device)
    valid = torch.ones(2, 8, 10, dtype=torch.bool, device=device)
    score_up = torch.full((2, 8, 10), -100.0, device=device)
    parts = BlockParts(block, x, valid, score_up)
    assert parts.layout.counts == (share(keep_ratio, 80),) * 2
    expected, decision, _ = block(x, valid, score_up)
    assert torch.equal(parts.score, decision.score) and torch.equal(parts.keep_mask, decision.keep_mask)
    out = parts.put_back()
    torch.testing.assert_close(out + block.mlp(block.norm2(out)), expected)


@torch.no_grad()
def test_all_parts_run_in_reduced_precision(device):
    model = nano_spt(torch.float32).to(device).eval()
    x = torch.randn(2, 8, 10, 32, device=device)
    valid, score_up = (
        torch.ones(2, 8, 10, dtype=torch.bool, device=device),
        torch.full((2, 8, 10), -100.0, device=device),
    )
    with torch.autocast(device.type, torch.bfloat16):
        parts = BlockParts(model.layers[2].blocks[0], x, valid, score_up)
        for run in (parts.selection, parts.arithmetic, *parts.pieces().values()):
            run()
        assert parts.qkv.dtype == torch.bfloat16 and parts.put_back().dtype == torch.float32


@pytest.mark.parametrize(
    "option",
    [
        {"position": "relative_bias"},
        {"gating": "sigmoid"},
        {"ffn_tokens": "selected"},
        {"proj_tokens": "all"},
        {"packing": "padded"},
    ],
)
def test_a_block_that_does_other_work_is_not_taken_apart(option):
    block = nano_spt(torch.float32, **option).eval().layers[2].blocks[0]
    x = torch.randn(1, 4, 4, 32)
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=rf"\n  {name}: {value} \(expected "):
        BlockParts(block, x, torch.ones(1, 4, 4, dtype=torch.bool), torch.full((1, 4, 4), -100.0))


def test_a_block_without_a_gate_is_not_taken_apart():
    block = nano_spt(torch.float32, gate="per_stage").eval().layers[2].blocks[1]
    with pytest.raises(ValueError, match="expects a block with a gate"):
        BlockParts(block, torch.randn(1, 4, 4, 32), torch.ones(1, 4, 4, dtype=torch.bool), torch.zeros(1, 4, 4))


def test_both_stages_have_to_select():
    with pytest.raises(ValueError, match=r"expects stages \(3, 4\) to select. Got SPA_STAGES \[4\]"):
        attention_cases(
            keep_ratios=[0.3],
            batches=[1],
            image_sizes=[(64, 64)],
            device=CPU,
            overrides={**NANO, "MODEL.SPT.SPA_STAGES": [4]},
        )


def test_arithmetic_and_selection_together_call_every_layer_of_the_block_once():
    model = nano_spt(torch.float32).eval()
    Planting(model).use(0.5, 1, (64, 64))
    block = model.layers[2].blocks[0]
    x = torch.randn(1, 4, 4, 32)
    inputs = x, torch.ones(1, 4, 4, dtype=torch.bool), torch.full((1, 4, 4), -100.0)
    with torch.no_grad():
        parts = BlockParts(block, *inputs)
    calls: list[tuple] = []
    for name, module in block.named_modules():
        if not list(module.children()) and not isinstance(module, (torch.nn.Dropout, DropPath)):
            module.register_forward_hook(
                lambda m, given, out, name=name: calls.append((name, tuple(given[0].squeeze().shape)))
            )
    with torch.no_grad():
        block(*inputs)
        expected, calls[:] = sorted(calls), []
        parts.arithmetic()
        parts.selection()
    assert sorted(calls) == expected
    # The gate takes the weights of its Linear, and does not call it.
    assert {name for name, _ in expected} >= {"norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"}


def test_stages_are_compared_with_dense_ones_and_parts_with_their_block():
    cases = attention_cases(
        keep_ratios=[0.25, 1.0],
        batches=[2],
        image_sizes=[(64, 128)],
        device=CPU,
        modes=("inference", "training"),
        overrides=NANO,
    )
    rows = {(case.name, case.mode, case.keep_ratio): row for case, row in zip(cases, time_cases(cases, CPU, rounds=1))}
    assert len(rows) == len(cases) == 2 * ((1 + 2 * (1 + 1 + 2 + len(PARTS))) + (1 + 2))
    for stage in (3, 4):
        for mode in ("inference", "training"):
            dense = rows[f"swin_stage{stage}", mode, None]
            assert dense.ratio_to_fastest_peer == 1.0
            for keep_ratio in (0.25, 1.0):
                spa = rows[f"spa_stage{stage}", mode, keep_ratio]
                assert spa.ratio_to_fastest_peer == pytest.approx(dense.median_ms / spa.median_ms)
        block = rows[f"spa_block{stage}", "inference", 0.25]
        for part in (*PARTS, "selection", "arithmetic"):
            row = rows[f"{part} of spa_block{stage}", "inference", 0.25]
            assert row.ratio_to_fastest_peer == pytest.approx(block.median_ms / row.median_ms)
    notes = shares(list(rows.values()))
    assert [note.partition(",")[0] for note in notes] == [
        f"spa_block{stage} at keep {keep_ratio}" for stage in (3, 4) for keep_ratio in (0.25, 1.0)
    ]


def test_a_training_step_of_a_stage_reaches_its_weights_and_starts_without_gradients(monkeypatch):
    networks, real = [], attention_module.step

    def spy(network, *arguments, **options):
        networks.append(network)
        return real(network, *arguments, **options)

    monkeypatch.setattr(attention_module, "step", spy)
    cases = attention_cases(
        keep_ratios=[0.5], batches=[1], image_sizes=[(64, 64)], device=CPU, modes=("training",), overrides=NANO
    )
    assert len(cases) == len(networks) == 4
    for case, network in zip(cases, networks):
        case.entry.prepare()
        case.entry.run()
        assert network.training
        assert all(p.grad is not None for name, p in network.named_parameters() if not name.startswith("downsample"))
        case.entry.prepare()
        assert all(p.grad is None for p in network.parameters())


def test_shares_are_percent_of_the_block():
    def row(name: str, ratio: float, low: float, high: float) -> Row:
        return Row(name, 0.23, "cpu", "float32", "inference", 1, (800, 1280), 1.0, 0.0, None, ratio, (low, high))

    rows = [row("spa_block3", 1.0, 1.0, 1.0), row("selection of spa_block3", 12.5, 10.0, 20.0)]
    rows.append(row("arithmetic of spa_block3", 1.25, 1.0, 2.0))
    rows += [row(f"{part} of spa_block3", ratio, 1.0, 1.0) for part, ratio in zip(PARTS, (100.0, 50.0, 40.0, 20.0))]
    assert shares(rows) == [
        "spa_block3 at keep 0.23, batch 1, 800x1280: gate, select, pack and unpack take 8.0 % (5.0 to 10.0; gate 1.0, "
        "select 2.0, pack 2.5, unpack 5.0) of its time, run by themselves; beyond its arithmetic it takes 20.0 % "
        "(0.0 to 50.0)"
    ]
