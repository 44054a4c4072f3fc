"""Functions on tensors: selection, packing, labels, windows, attention, losses. Needs torch only."""
