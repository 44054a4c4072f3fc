"""Times side by side: backbones, blocks, packing, data and detectors, ours and others' (tools/benchmark.py)."""
