"""Make accelerate shard over CPU processes: `launch --config_file ... -m tests.launching.stages`.

Given CPUs, accelerate 1.15 trains data-parallel whatever its configuration asks for, silently, so
that a test of fsdp2.yaml would be a test of multi_gpu.yaml. `shard_on_cpu` has it treat processes
on CPUs as processes on GPUs, with gloo in the place of NCCL. What only a GPU has (streams, NCCL's
reductions, mixed devices) is not seen by this.
"""

import os
from importlib import import_module
from typing import Any

from accelerate.state import AcceleratorState, DistributedType, PartialState


def shard_on_cpu() -> None:
    """Patch accelerate in this process, before its first state, as its configuration asks."""
    if os.getenv("ACCELERATE_USE_FSDP") == "true":
        _fsdp_on_cpu()
    if os.getenv("ACCELERATE_USE_DEEPSPEED") == "true":
        _deepspeed_on_cpu()


def _fsdp_on_cpu() -> None:
    """Rename the processes as AcceleratorState asks for them: it shards those of GPUs only."""
    original = AcceleratorState.__init__

    def init(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        if not PartialState._shared_state:
            PartialState(True)
        shared = PartialState._shared_state
        if shared["distributed_type"] == DistributedType.MULTI_CPU:
            shared["distributed_type"] = DistributedType.MULTI_GPU
        original(self, *args, **kwargs)

    AcceleratorState.__init__ = init


def _deepspeed_on_cpu() -> None:
    """Let DeepSpeed open the process group, which accelerate does where it is not told `cpu`."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    comm: Any = import_module("deepspeed.comm")
    # By its name in full: the attribute `torch` of `deepspeed.comm` is torch itself.
    backend: Any = import_module("deepspeed.comm.torch")
    backend.build_shm_op = lambda: None  # a C++ extension that takes minutes to compile
    whole, partial = AcceleratorState.__init__, PartialState.__init__

    def init_partial(self: PartialState, *args: Any, **kwargs: Any) -> None:
        partial(self, *args, **kwargs)
        if self.distributed_type != DistributedType.DEEPSPEED:
            comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
            self.distributed_type = DistributedType.DEEPSPEED

    def init_whole(self: AcceleratorState, *args: Any, **kwargs: Any) -> None:
        whole(self, *args, **{**kwargs, "cpu": False})

    PartialState.__init__, AcceleratorState.__init__ = init_partial, init_whole
