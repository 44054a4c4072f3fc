"""Where a number comes from: the commit of the code, the machine it ran on, the file it started from."""

import functools
import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

_ROOT = Path(__file__).resolve().parents[1]

# What is written beside a measurement and cannot change it: results that were measured before, and pages.
_NOT_CODE = (":(exclude)results", ":(exclude)projects/SPT/results", ":(exclude)*.md")


def code_commit() -> str | None:
    """The repository's commit, marked where code or configs differ from it; None outside of a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # An archive unpacked inside another project is not that project's commit.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != _ROOT:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *_NOT_CODE)
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def machine(device: str) -> dict[str, Any]:
    """
    What a time depends on.

    Args:
        device: that the model runs on.

    Returns:
        ``{"processor", "cores", "threads", "torch", "device"}``: the processor's name, cores that this process may use,
        torch's threads, torch's version, the accelerator's name or "cpu".
    """
    accelerator = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {
        "processor": _processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": accelerator,
    }


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    # Not Linux, or a processor that does not name its model there.
    return platform.processor() or platform.machine()


@functools.lru_cache(maxsize=16)
def file_digest(path: str) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits; read once."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
