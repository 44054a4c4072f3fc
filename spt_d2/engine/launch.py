"""Start a program in one process or many: by Detectron2's launch, or as one of those torchrun started."""

import argparse
import logging
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch as detectron2_launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

logger = logging.getLogger(__name__)

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launch(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> object:
    """
    Run ``main(args)`` in as many processes as asked for.

    Under torchrun this process is one of them already, and joins the others. Otherwise ``args.num_gpus`` processes are
    spawned on this machine; on a machine without a GPU they talk through gloo and share the cores.

    Args:
        main: importable from its module, for spawned processes import it again.
        args: of :func:`detectron2.engine.default_argument_parser`.

    Returns:
        What ``main`` returned, None if it ran in spawned processes.

    Raises:
        ValueError: torchrun and a number of processes, or more processes than GPUs.
    """
    if all(name in os.environ for name in _TORCHRUN):
        if args.num_gpus != 1 or args.num_machines != 1:
            raise ValueError(
                "launch() expects no --num-gpus and --num-machines under torchrun, which says how many processes run.\n"
                f"  --num-gpus    : {args.num_gpus}\n  --num-machines: {args.num_machines}\n"
                "HINT: torchrun --nproc-per-node N --nnodes M."
            )
        return _join_torchrun(main, args)
    if args.num_gpus * args.num_machines <= 1:
        return main(args)
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        raise ValueError(
            f"--num-gpus expects at most {torch.cuda.device_count()} on this machine. Got {args.num_gpus}."
        )
    return detectron2_launch(
        _Spawned(main),
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


class _Spawned:
    """``main`` in a process that Detectron2 spawned; a class, for a closure cannot be sent there."""

    def __init__(self, main: Callable[[argparse.Namespace], object]):
        self.main = main

    def __call__(self, args: argparse.Namespace) -> None:
        _share_cores(comm.get_local_size())
        self.main(args)
        # Not after an exception: the other processes may be waiting in a collective that this one will not join.
        dist.destroy_process_group()


def _join_torchrun(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> object:
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(local_size)
    # As Detectron2's launch does: a process that is late must not let the others time out.
    comm.synchronize()
    result = main(args)
    dist.destroy_process_group()
    return result


def _share_cores(processes: int) -> None:
    """On a CPU each of several processes would otherwise take every core."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))


def distribute(model: nn.Module, **kwargs) -> nn.Module:
    """
    Wrap a model for training in several processes; in one, return it as it is.

    Detectron2's ``create_ddp_model`` names a device id for every model, which torch refuses for one on the CPU.

    Args:
        model: on its device.
        **kwargs: of :class:`DistributedDataParallel`; and ``fp16_compression``, to halve what is sent.
    """
    if comm.get_world_size() == 1:
        return model
    compress = kwargs.pop("fp16_compression", False)
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and dist.get_backend() == "nccl":
        raise ValueError(
            "Several processes expect a model on the GPU where there is one. Got one on the CPU.\n"
            "HINT: CUDA_VISIBLE_DEVICES= in the environment hides the GPUs."
        )
    wrapped = DistributedDataParallel(model, device_ids=None if on_cpu else [comm.get_local_rank()], **kwargs)
    if compress:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        wrapped.register_comm_hook(state=None, hook=fp16_compress_hook)
    return wrapped
