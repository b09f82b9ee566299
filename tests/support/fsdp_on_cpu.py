"""``mm-cca`` with FSDP2 on CPU processes: PyTorch can, accelerate offers it for GPUs only."""

import sys

from accelerate import DistributedType, PartialState

from mm_cca import cli

if __name__ == "__main__":
    PartialState(cpu=True)
    # The one lie: accelerate then takes the same path as on eight GPUs.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    sys.exit(cli.main(sys.argv[1:]))
