"""Run a recipe in this process and measure it: `python -m benchmarks.recipe_run`, case on stdin.

The case is read after everything is imported, so one process can import while another measures.
Prints one line of JSON, with the error's first line if the recipe failed.
"""

import io
import json
import re
import runpy
import sys
import time
import traceback
from contextlib import redirect_stdout
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from benchmarks.measure import report, synchronize

STAGES = ("reward", "dpo", "ppo", "grpo", "evaluate")
PER_UNIT = {"GB": 1.0, "MB": 1e-3}


class Clock(TrainerCallback):
    """Times training steps, and ends a training that has used up its seconds."""

    def __init__(self, seconds: float) -> None:
        self.limit = seconds
        self.started = time.perf_counter()
        self.ends: list[float] = []
        self.facts: dict[str, Any] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        synchronize()
        self.ends.append(time.perf_counter())
        if self.ends[-1] - self.started > self.limit:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # PPO's rollout is in the first of the steps that use it, so whole rollouts are timed.
        cycle = getattr(args, "num_mini_batches", 1) * getattr(args, "num_ppo_epochs", 1)
        last = len(self.ends) // cycle * cycle
        self.facts = {
            "steps": len(self.ends),
            "rows_per_step": args.per_device_train_batch_size * args.gradient_accumulation_steps,
        }
        if last > cycle:  # the first ones warm up
            taken = self.ends[last - 1] - self.ends[cycle - 1]
            self.facts["seconds_per_step"] = taken / (last - cycle)
        key = "completions/mean_length"
        lengths = [log[key] for log in state.log_history if key in log]
        if lengths:
            self.facts["completion_tokens"] = sum(lengths) / len(lengths)


def planned_gb(plan: str) -> float:
    """Return the peak memory in GB that the text of a plan states."""
    stated = re.search(r"^ *peak +([\d.]+) (GB|MB)", plan, re.MULTILINE)
    assert stated is not None, f"no peak in {plan}"
    return float(stated[1]) * PER_UNIT[stated[2]]


def main() -> None:
    """Print the case's plan to nobody, run it, and report."""
    scripts = {stage: runpy.run_path(f"recipes/{stage}.py") for stage in STAGES}
    case = json.loads(sys.stdin.readline())
    run, clock = scripts[case["stage"]]["main"], Clock(case["seconds"])
    callbacks: list[Any] = DEFAULT_CALLBACKS
    callbacks.append(clock)
    measured: dict[str, Any] = {}
    try:
        sys.argv = [f"recipes/{case['stage']}.py", *case["flags"], "--plan"]
        with redirect_stdout(io.StringIO()) as plan:
            run()
        measured["plan_gb"] = planned_gb(plan.getvalue())
        sys.argv.pop()
        clock.started = time.perf_counter()
        run()
        measured["stage_seconds"] = time.perf_counter() - clock.started
    except Exception as error:
        traceback.print_exc()
        measured["error"] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if torch.cuda.is_available():
        measured["reserved_gb"] = torch.cuda.max_memory_reserved() / 1e9
    report(**clock.facts, **measured)


if __name__ == "__main__":
    main()
