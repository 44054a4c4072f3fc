"""Files of weights: ``.pth`` as torch saves them, ``.pkl`` of Detectron2's model zoo, ``.safetensors``."""

import os
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

UNSAFE = (
    "{who} expects a file of tensors. Got {path}, which holds other objects too, as files of whole training runs do:\n"
    "  {why}\nHINT: {cure}; it runs code that the file may hold: do it only with a file from a source that you trust."
)


def read_weights(path: str | os.PathLike[str], trust: bool = False) -> dict[str, Tensor]:
    """
    Read a state dict, wherever the file keeps it.

    Args:
        path: of a ``.safetensors``, ``.pkl`` or other file; others are read as torch's.
        trust: whether the file may hold any Python object. Reading it then runs code that is in it.

    Returns:
        name to tensor, on the CPU.

    Raises:
        ValueError: something other than tensors in it, and no trust; no state dict; not a file of its ending's kind.
        ImportError: a ``.safetensors`` file, and no such package.
    """
    path = os.fspath(path)
    if path.endswith(".safetensors"):
        package = _safetensors()
        try:
            return package.torch.load_file(path, device="cpu")
        except package.SafetensorError as error:
            message = _unlike("read_weights(path=)", path, "a whole .safetensors file", f" ({error})")
            raise ValueError(message) from error
    cure = "--trust of tools/convert_swin_weights.py reads it (read_weights(trust=True))"
    if path.endswith(".pkl"):
        if not trust:
            why = "it is a pickle"
            raise ValueError(UNSAFE.format(who="read_weights(path=)", path=path, why=why, cure=cure))
        with open(path, "rb") as file:
            return unwrap_weights(pickle.load(file, encoding="latin1"))
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise unreadable("read_weights(path=)", path, error, cure) from error
    return unwrap_weights(loaded)


def unreadable(who: str, path: str, error: pickle.UnpicklingError, cure: str) -> ValueError:
    """
    What to say of a file that torch did not read: more than tensors in it, or nothing that torch wrote.

    Args:
        who: the call and its argument.
        path: of the file.
        error: torch's.
        cure: for a file with more than tensors.
    """
    # An archive, or a pickle as torch wrote before; a page that says "not found" is neither.
    if not _start(path).startswith((b"PK", b"\x80")):
        return ValueError(_unlike(who, path, "a file that torch wrote"))
    lines = str(error).splitlines() or [""]
    why = next((line.strip() for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0])
    return ValueError(UNSAFE.format(who=who, path=path, why=why, cure=cure))


def _start(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(24)


def _unlike(who: str, path: str, kind: str, why: str = "") -> str:
    """What to say of a file that is not of its kind, perhaps because it stands in for one."""
    start = _start(path)
    pointer = start.startswith(b"version https://git-lfs")
    hint = "\nHINT: it is Git LFS's pointer to the file; git lfs pull fetches the file itself." if pointer else ""
    return f"{who} expects {kind}. Got {path}, which begins with {start[:16]!r}{why}.{hint}"


def unwrap_weights(loaded: Any) -> dict[str, Tensor]:
    """
    The state dict in what a file holds: itself, or below ``model`` or ``state_dict``.

    Raises:
        ValueError: no mapping, or values that are no tensors.
    """
    if not isinstance(loaded, Mapping):
        raise ValueError(
            "unwrap_weights(loaded=) expects a state dict, or one below 'model' or 'state_dict'. "
            f"Got {type(loaded).__name__}."
        )
    for key in ("model", "state_dict"):
        if isinstance(loaded.get(key), Mapping):
            return unwrap_weights(loaded[key])
    weights = {}
    for name, value in loaded.items():
        if not isinstance(value, Tensor) and not hasattr(value, "__array__"):
            raise ValueError(
                "unwrap_weights(loaded=) expects a state dict, or one below 'model' or 'state_dict'. "
                f"Got {type(value).__name__} for {name!r}."
            )
        weights[name] = torch.as_tensor(value)
    return weights


def write_weights(weights: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """
    Write a state dict, whole or not at all: as ``.safetensors`` where the name ends so, else by torch, below ``model``.

    Raises:
        ImportError: a ``.safetensors`` file, and no such package.
    """
    path = os.fspath(path)
    # Neither format is to see that tensors may be views of one larger storage.
    own = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    unfinished = f"{path}.unfinished"
    if path.endswith(".safetensors"):
        _safetensors().torch.save_file(own, unfinished, metadata={"format": "pt"})
    else:
        torch.save({"model": own}, unfinished)
    os.replace(unfinished, path)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "A .safetensors file needs the package safetensors, which could not be imported.\n"
            "HINT: pip install safetensors; or take, or write, a .pth file."
        ) from error
    return safetensors
