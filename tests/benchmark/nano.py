"""Overrides of a config that make the benchmark's backbones take milliseconds."""

from typing import Any

SIZES = {
    "EMBED_DIM": 8,
    "DEPTHS": [1, 1, 2, 2],
    "NUM_HEADS": [1, 2, 2, 4],
    "WINDOW_SIZE": 2,
    "MLP_RATIO": 2.0,
}
NANO: dict[str, Any] = {f"MODEL.{node}.{key}": value for node in ("SPT", "SWIN") for key, value in SIZES.items()}
# The same on a command line.
NANO_OPTS = [str(part) for pair in NANO.items() for part in pair]
