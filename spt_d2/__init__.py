"""
Select-and-Pack Attention for Detectron2: attention is spent on the tokens that show objects.

Importing this package registers its backbones, meta-architectures and data sets with Detectron2, where that is
installed. Where it is not, :mod:`spt_d2.ops` and :mod:`spt_d2.layers` still work: they need torch only.
"""

import importlib.util

from spt_d2._configs import get_config, get_config_file

__version__ = "0.1.0"

__all__ = ["__version__", "get_config", "get_config_file"]


def _detectron2_installed() -> bool:
    spec = importlib.util.find_spec("detectron2")
    # A mere folder of that name, such as a checkout in the current directory, is found too, but has no origin.
    return spec is not None and spec.origin is not None


if _detectron2_installed():
    # Registers what they define.
    import spt_d2.data
    import spt_d2.modeling  # noqa: F401  nothing here reads it
