"""How a run goes; read by tools/lazyconfig_train_net.py."""

train = {
    "output_dir": "./output",
    # Weights to start from, or to evaluate.
    "init_checkpoint": "",
    "max_iter": 270000,
    # Factor from the config's batch size to that of the run; rate, iterations and periods follow it.
    "batch_scale": 1.0,
    # Of torch, numpy, random, of the order of the data and of augmentations; negative for another each time.
    "seed": -1,
    "device": "cuda",
    "cudnn_benchmark": False,
    # Mixed precision: float16 (CUDA only) or bfloat16.
    "amp": {"enabled": False, "precision": "float16"},
    # Gradient clipping: value, norm (of each parameter) or full_model (of all together).
    "clip_gradients": {"enabled": False, "kind": "full_model", "value": 1.0, "norm_type": 2.0},
    # Exponential moving average of the weights; it is then what is evaluated and saved.
    "ema": {"enabled": False, "decay": 0.999},
    "ddp": {"broadcast_buffers": False, "find_unused_parameters": False, "fp16_compression": False},
    "checkpointer": {"period": 5000, "max_to_keep": 100},
    # Iterations between evaluations; 0 for one at the end.
    "eval_period": 5000,
    # Iterations between two gatherings of metrics, each of which waits for the device.
    "log_period": 20,
}

# With the schedules of the same names; evaluated about once an epoch.
coco_1x = {**train, "max_iter": 90000, "eval_period": 7500}
coco_3x = {**train, "max_iter": 270000, "eval_period": 7500}
bdd100k_1x = {**train, "max_iter": 52400, "eval_period": 4500}
bdd100k_3x = {**train, "max_iter": 157200, "eval_period": 4500}
# Every ten epochs.
voc = {**train, "max_iter": 12860, "eval_period": 3570}

# Evaluated at the end; from scratch and at ten times the rate, so that gradients are clipped.
nano = {
    **train,
    "max_iter": 900,
    "seed": 0,
    "eval_period": 0,
    "checkpointer": {**train["checkpointer"], "period": 450},
    "clip_gradients": {**train["clip_gradients"], "enabled": True},
}

# Small data sets of one's own.
custom_nano = {
    **nano,
    "max_iter": 2000,
    "eval_period": 500,
    "checkpointer": {**train["checkpointer"], "period": 500},
}
custom_t = {
    **train,
    "init_checkpoint": "swin_tiny_patch4_window7_224.pth",
    "max_iter": 5000,
    "eval_period": 1000,
    "checkpointer": {**train["checkpointer"], "period": 1000},
}
