"""The most memory that a step holds at a time."""

from collections.abc import Callable

import torch
from torch.autograd.profiler import profile

from spt_d2.analysis.latency import wait_for

MEGABYTE = 2**20


def peak_megabytes(run: Callable[[], object], device: torch.device) -> float:
    """
    The most that tensors take at a time while something runs, in 2^20 bytes, beyond what they took before.

    Weights are there before and do not count; activations, gradients and temporary tensors do. On a GPU it is what
    torch's allocator says. On a CPU it is the same figure from torch's memory profiler, which sees every allocation
    and release of torch's CPU allocator; buffers that libraries such as oneDNN take for themselves escape it. The
    process's own size would count them, but moves with what its allocator has kept from earlier.

    Args:
        run: called once.
        device: that it runs on.
    """
    wait_for(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        wait_for(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MEGABYTE
    with profile(use_kineto=True, profile_memory=True) as recorded:
        run()
    changes = [
        (event.start_ns(), event.nbytes()) for event in recorded.kineto_results.events() if event.name() == "[memory]"
    ]
    held = peak = 0
    # Stable: at one instant they stay as recorded.
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        peak = max(peak, held)
    return peak / MEGABYTE
