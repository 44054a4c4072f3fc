"""Tensors that follow from shapes alone, kept from call to call."""

import functools
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class ShapeCache(Generic[P, R]):
    """
    A function of hashable arguments that keeps its latest results.

    They are made outside inference mode, whoever asks first: autograd refuses to save an inference tensor, and the next
    caller may be training. While a program is traced, compiled or exported nothing is kept and nothing kept is taken:
    tensors made then are of the tracer, and would outlive it.
    """

    def __init__(self, function: Callable[P, R], maxsize: int):
        self._make: Callable[P, R] = torch.inference_mode(mode=False)(function)
        self._kept: Any = functools.lru_cache(maxsize)(self._make)
        self.cache_clear, self.cache_info = self._kept.cache_clear, self._kept.cache_info
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._make(*args, **kwargs) if is_traced() else self._kept(*args, **kwargs)


def shape_cache(maxsize: int) -> Callable[[Callable[P, R]], ShapeCache[P, R]]:
    """Decorator: a :class:`ShapeCache` of at most ``maxsize`` results."""

    def decorate(function: Callable[P, R]) -> ShapeCache[P, R]:
        return ShapeCache(function, maxsize)

    return decorate


def is_traced() -> bool:
    """Whether what runs is being traced, compiled or exported."""
    # An export compiles, for torch.
    return torch.jit.is_tracing() or torch.compiler.is_compiling()
