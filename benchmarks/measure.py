"""Read a benchmark case, time it or count its operations, and report: shared by both sides.

Nothing of this project is imported, because a peer may run in an environment of its own.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import Trainer, TrainerCallback

Case = dict[str, Any]


def read_case(file: str) -> Case:
    """Read the case that `bench.py` wrote."""
    case: Case = json.loads(Path(file).read_text(encoding="utf-8"))
    return case


def report(**values: Any) -> None:
    """Print one line of JSON: the values, and the peak memory of the process."""
    sys.stdout.write("\n" + json.dumps({**values, "peak_gb": peak_memory_gb()}) + "\n")


def peak_memory_gb() -> float:
    """Return the peak memory of this process in GB: allocated on its GPU if any, else resident.

    On Linux `getrusage` would not do: a process inherits the peak of the one that started it.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    status = Path("/proc/self/status")
    if status.exists():
        peaks = [line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line]
        return int(peaks[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # in bytes on macOS


def synchronize() -> None:
    """Wait for the GPU, if there is one, so that a clock read next counts its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def flop_counter() -> FlopCounterMode:
    """Make a counter of floating-point operations that, unlike torch's, counts CPU attention."""
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(
        display=False,
        custom_mapping={
            forward: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
            backward: lambda *shapes, **_: sdpa_backward_flop_count(*shapes[:4]),
        },
    )


def measured(call: Callable[[], object], count_flops: bool) -> dict[str, float]:
    """Call a function and return its `seconds`, or its `flops` where they are counted."""
    if count_flops:
        with flop_counter() as counter:
            call()
        return {"flops": counter.get_total_flops()}
    synchronize()
    started = time.perf_counter()
    call()
    synchronize()
    return {"seconds": time.perf_counter() - started}


class _Steps(TrainerCallback):
    """Time or count the training steps that follow the warm-up."""

    def __init__(self, counter: FlopCounterMode | None, warm_up: int) -> None:
        self.counter, self.warm_up = counter, warm_up
        self.started = self.ended = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        synchronize()
        self.ended = time.perf_counter()
        if state.global_step == self.warm_up:
            self.started = self.ended
            if self.counter is not None:
                self.counter.__enter__()
        elif state.global_step == state.max_steps and self.counter is not None:
            self.counter.__exit__(None, None, None)


def measured_steps(trainer: Trainer, count_flops: bool, warm_up: int = 1) -> dict[str, Any]:
    """Train, and measure the steps that follow the warm-up, without loading and tokenization.

    Where batches differ in size, the first few also allocate the memory that later ones reuse.

    Returns:
        `seconds` or `flops` of the measured steps in total, and as `values` the loss and the
        gradient norm of every step. `logging_steps` must be 1.
    """
    counter = flop_counter() if count_flops else None
    steps = _Steps(counter, warm_up)
    trainer.add_callback(steps)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "grad_norm" in log]
    values = [log[name] for log in logs for name in ("loss", "grad_norm")]
    if counter is not None:
        return {"flops": counter.get_total_flops(), "values": values}
    return {"seconds": steps.ended - steps.started, "values": values}
