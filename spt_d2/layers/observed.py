"""Whether somebody looks into a module: fast paths then leave its parts as they are."""

from torch import nn


def is_observed(*modules: nn.Module) -> bool:
    """Whether a hook is to see what one of these modules, or a part of one, is given or gives: a whole map then."""
    return nn.modules.module._has_any_global_hook() or any(
        inner._forward_hooks or inner._forward_pre_hooks or inner._backward_hooks or inner._backward_pre_hooks
        for module in modules
        for inner in module.modules()
    )
