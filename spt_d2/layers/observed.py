"""Whether a module is as this project made it, and nobody looks into it: fast paths do the work of its parts then."""

from torch import nn


def as_built(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is of this very class, and its ``forward`` that of the class."""
    return type(module) is kind and "forward" not in vars(module)


def is_observed(*modules: nn.Module) -> bool:
    """Whether a hook is to see what one of these modules, or a part of one, is given or gives."""
    # Private, but torch has no public question of hooks, of all modules or of one.
    return nn.modules.module._has_any_global_hook() or any(
        inner._forward_hooks or inner._forward_pre_hooks or inner._backward_hooks or inner._backward_pre_hooks
        for module in modules
        for inner in module.modules()
    )
