"""Two processes that share a batch take the step that one process takes on all of it."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests import reference
from tests.modeling.nano import FEATURES, nano_dynamic_swin, nano_spt, nano_swin

from spt_d2.ops import selection as selection_ops  # isort: skip
from spt_d2.ops.losses import selection_loss  # isort: skip

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch has no gloo"
)

BATCH = 4


class BackboneWithLosses(nn.Module):
    """The backbone, a fixed linear head on every map, and the selection loss of every gate."""

    def __init__(self, reduction: str, segment: str, gate: str):
        super().__init__()
        self.backbone = nano_spt(segment=segment, gate=gate, gating="sigmoid")
        self.reduction = reduction

    def forward(self, x: Tensor, labels: dict[int, Tensor]) -> Tensor:
        features, selections = self.backbone.forward_with_selections(x, [(64, 64)] * x.shape[0], labels)
        loss = x.new_zeros(())
        for name in FEATURES:
            channels = torch.arange(features[name].shape[1], dtype=x.dtype)
            head = torch.sin(channels + 1).view(1, -1, 1, 1)
            loss = loss + (features[name] * head).mean()
        for selection in selections:
            label = labels[selection.stride]
            loss = loss + 0.1 * selection_loss(selection.score, label, selection.valid, reduction=self.reduction)
        return loss


class DynamicSwinWithLosses(nn.Module):
    """Its maps under a fixed head, its ratio loss and the distance from its teacher, without noise."""

    def __init__(self, teacher_weights: str):
        super().__init__()
        self.backbone = nano_dynamic_swin(teacher_weights=teacher_weights)

    def forward(self, x: Tensor, labels: dict[int, Tensor]) -> Tensor:
        with pytest.MonkeyPatch.context() as patch:
            # Drawn anew in each process, it would give each of them other decisions.
            patch.setattr(selection_ops, "selection_noise", lambda score, noise: None)
            features, selections = self.backbone.forward_with_selections(x, [(64, 64)] * x.shape[0], labels)
        losses = self.backbone.selection_losses(selections)
        assert losses.keys() == {"loss_keep_ratio", "loss_distill"}
        return sum(losses.values()) + sum(torch.sin(features[name]).mean() for name in FEATURES)


def whole_batch() -> tuple[Tensor, dict[int, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(BATCH, 3, 64, 64, dtype=torch.float64, generator=generator)
    labels = {}
    for stride in (8, 16, 32):
        side = 64 // stride
        drawn = torch.randint(0, 3, (BATCH, side, side), generator=generator)
        labels[stride] = torch.tensor([0, 1, 255], dtype=torch.uint8)[drawn]
    return x, labels


def _work(rank: int, processes: int, folder: str, kind: type[nn.Module], arguments: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=processes
    )
    model = nn.parallel.DistributedDataParallel(kind(*arguments))
    x, labels = whole_batch()
    mine = slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)
    # Twice: a parameter without a gradient in the first step is an error in the second.
    for _ in range(2):
        model.zero_grad()
        loss = model(x[mine], {stride: label[mine] for stride, label in labels.items()})
        loss.backward()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    if rank == 0:
        gradients = {name: p.grad for name, p in model.module.named_parameters()}
        torch.save({"loss": total / processes, "gradients": gradients}, f"{folder}/result.pt")
    # Both have what they wanted. Left to Python, gloo's threads were once seen to wait for each other for ever while a
    # process took its objects apart: it ends here instead.
    torch.distributed.barrier()
    os._exit(0)


def compare(folder: Path, kind: type[nn.Module], *arguments: str) -> nn.Module:
    """Loss and gradients of two processes with those of one, which is returned."""
    torch.multiprocessing.spawn(_work, args=(2, str(folder), kind, arguments), nprocs=2)
    result = torch.load(folder / "result.pt")
    alone = kind(*arguments)
    loss = alone(*whole_batch())
    loss.backward()
    reference.close(result["loss"], loss.detach())
    for name, parameter in alone.named_parameters():
        reference.close(result["gradients"][name], parameter.grad, atol=1e-9, rtol=1e-8)
    return alone


@pytest.mark.parametrize("kind", [("mean", "container", "per_block"), ("sum", "window", "per_stage")], ids=str)
def test_two_processes_equal_one(kind: tuple[str, str, str], tmp_path: Path):
    alone = compare(tmp_path, BackboneWithLosses, *kind)
    assert alone.backbone.output_gates["stage2"].gate.proj.weight.grad.abs().sum() > 0


def test_two_processes_of_dynamic_swin_with_a_teacher_equal_one(tmp_path: Path):
    torch.save(nano_swin(depths=(1, 1, 6, 1)).state_dict(), tmp_path / "teacher.pth")
    compare(tmp_path, DynamicSwinWithLosses, str(tmp_path / "teacher.pth"))
