"""Switch off, before they are imported, the warnings of other libraries that no user can act on."""

import logging
import os
import sys
import warnings

VERBOSITY = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "DIFFUSERS_VERBOSITY")


def quiet_process() -> None:
    """For this process and those that it starts; what the user has set in the environment stays.

    ``mm-cca --debug``, ``python -W`` and ``PYTHONWARNINGS`` show them.
    """
    for name in VERBOSITY:
        os.environ.setdefault(name, "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # such as NNPACK on other hardware
    # It tells at import of kernels for CPUs that are only faster.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # It sets its level itself when accelerate imports it, and tells that there is no GPU.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
