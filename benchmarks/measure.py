"""What both sides of a benchmark share: read a case, time it, count its operations, report.

Nothing of this project is imported: a peer may run in an environment of its own.
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
    """The case that the bench wrote."""
    case: Case = json.loads(Path(file).read_text(encoding="utf-8"))
    return case


def report(**values: Any) -> None:
    """Print one line of JSON: the values, and the most memory the process has held."""
    sys.stdout.write("\n" + json.dumps({**values, "peak_gb": peak_memory_gb()}) + "\n")


def peak_memory_gb() -> float:
    """The most resident memory this process has held, in GB.

    `getrusage` would not do: on Linux a process starts with the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        peaks = [line.split()[1] for line in status.read_text().splitlines() if "VmHWM" in line]
        return int(peaks[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # in bytes on macOS


def flop_counter() -> FlopCounterMode:
    """A counter of floating-point operations that knows attention on a CPU, as torch's does not."""
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
    """Seconds that a call takes, or the floating-point operations of it."""
    if count_flops:
        with flop_counter() as counter:
            call()
        return {"flops": counter.get_total_flops()}
    started = time.perf_counter()
    call()
    return {"seconds": time.perf_counter() - started}


class _Steps(TrainerCallback):
    """The training steps after those that warm up."""

    def __init__(self, counter: FlopCounterMode | None, warm_up: int) -> None:
        self.counter, self.warm_up = counter, warm_up
        self.started = self.ended = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.ended = time.perf_counter()
        if state.global_step == self.warm_up:
            self.started = self.ended
            if self.counter is not None:
                self.counter.__enter__()
        elif state.global_step == state.max_steps and self.counter is not None:
            self.counter.__exit__(None, None, None)


def measured_steps(trainer: Trainer, count_flops: bool, warm_up: int = 1) -> dict[str, Any]:
    """Train, and measure the steps after `warm_up`: loading and tokenising are not in them.

    Where batches differ in size the first few also ask the system for memory that the others find.
    Returns `seconds` or `flops` of those steps together, and as `values` the loss and the gradient
    norm of every step. `logging_steps` must be 1.
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
