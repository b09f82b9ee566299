"""``mm-cca`` with DeepSpeed on CPU processes, which accelerate does not offer."""

import os
import sys

import deepspeed
from accelerate import DistributedType, PartialState

from mm_cca import cli

if __name__ == "__main__":
    PartialState(cpu=True)
    deepspeed.comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    # With these overrides accelerate takes the same path as on several GPUs.
    PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
    del os.environ["ACCELERATE_USE_CPU"]
    sys.exit(cli.main(sys.argv[1:]))
