"""``mm-cca`` with FSDP2 on CPU processes, which PyTorch supports and accelerate does not offer."""

import sys

from accelerate import DistributedType, PartialState

from mm_cca import cli

if __name__ == "__main__":
    PartialState(cpu=True)
    # With this override accelerate takes the same path as on several GPUs.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    sys.exit(cli.main(sys.argv[1:]))
