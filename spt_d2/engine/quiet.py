"""A terminal without third parties' warnings, for programs that newcomers run."""

import logging
import warnings


def quiet_third_parties() -> None:
    """They are for those who develop, and name nothing that a reader of the output could change."""
    warnings.simplefilter("ignore")
    for name in ("torch.fx._symbolic_trace", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
