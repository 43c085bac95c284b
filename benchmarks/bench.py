"""Time stages against their peers on the same work: `python -m benchmarks.bench dpo`.

The two sides run alternately, each run in a process of its own with all cores. A stage prints its
table and writes `results/<stage>.json` with a figure of the same name.
"""

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks import figures, growth, startup
from benchmarks.cases import Setting
from benchmarks.measure import Case, synchronize
from rlhf_recipes.ending import run_script
from rlhf_recipes.machine import use_all_cores
from rlhf_recipes.records import write_json

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")
COMPARED = ("reward", "dpo", "ppo", "grpo", "evaluate")
OTHERS = {"growth": growth.record, "startup": startup.record}


def main() -> None:
    """Run the benchmarks that the command line names, and write their records."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="+", choices=[*COMPARED, *OTHERS])
    parser.add_argument("--dataset_name", default="recipes/demo/preferences")
    parser.add_argument("--base", default="demo", help="Base model, embedded or a Hub id.")
    parser.add_argument("--max_length", type=int, default=256, help="Longer pairs are left out.")
    parser.add_argument(
        "--peer_python", default=".venv-trl112/bin/python", help="Python of PPO's peer."
    )
    parser.add_argument("--runs", type=int, default=3, help="Runs per side.")
    parser.add_argument("--case", default="", help="Run only the cases whose name contains this.")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    use_all_cores()
    for stage in options.stages:
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(Path(folder), options.dataset_name, options.base, options.max_length)
            if stage in OTHERS:
                record = OTHERS[stage](setting)
            else:
                record = compare_all(stage, setting, options)
        record = {"stage": stage, **record, **machine()}
        write_json(options.output_dir / f"{stage}.json", record)
        figures.draw(record, options.output_dir / f"{stage}.png")


def compare_all(stage: str, setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """Compare both sides on every case of a stage; for `benchmarks/results/<stage>.json`."""
    module = importlib.import_module(f"benchmarks.{stage}")
    peak = peak_flops()
    comparisons = []
    for case in module.cases(setting):
        if options.case in case["name"]:
            comparisons.append(compare(module, case, options, peak))
            print(table(stage, comparisons[-1]), flush=True)
    return {"dataset": setting.dataset_name, "base": setting.base, "cases": comparisons}


def compare(
    stage: ModuleType, case: Case, options: argparse.Namespace, peak: float
) -> dict[str, Any]:
    """Run both sides of a case alternately; return medians, and ratios of adjacent runs."""
    sides: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    for number in range(options.runs):
        for side, runs in sides.items():
            runs.append(run(stage, {**case, "side": side}, options.peer_python))
            seconds = runs[-1]["seconds"] / case["units"]
            print(f"  {case['name']}, run {number + 1}, {side}: {seconds:.3f} s", flush=True)
    ours, theirs = (_summary(runs, case["units"]) for runs in sides.values())
    counted = run(stage, {**case, "side": "ours", "count_flops": True}, options.peer_python)
    return {
        "name": case["name"],
        "peer": stage.PEER,
        "unit": stage.UNIT,
        "ours": ours,
        "theirs": theirs,
        "speedup": ratios(ours["seconds_by_run"], theirs["seconds_by_run"]),
        "memory_ratio": theirs["peak_gb"] / ours["peak_gb"],
        "equal": {
            "what": stage.EQUAL,
            "difference": difference(stage, case, sides, options.peer_python),
        },
        "flops_share": counted["flops"] / case["units"] / ours["seconds"] / peak,
    }


def ratios(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Divide the seconds of each peer run by those of our run before it."""
    speedups = [peer / mine for mine, peer in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(speedups), "min": min(speedups), "max": max(speedups)}


def difference(
    stage: ModuleType, case: Case, sides: dict[str, list[dict[str, Any]]], peer_python: str
) -> float:
    """Return the largest absolute difference between the values that the sides computed.

    They are those of the first runs, or of extra runs if the case has changes under `equality`.
    """
    mine, peer = (
        run(stage, {**case, **case["equality"], "side": side}, peer_python)
        if "equality" in case
        else runs[0]
        for side, runs in sides.items()
    )
    values: list[tuple[float, float]] = list(zip(mine["values"], peer["values"], strict=True))
    return max(abs(a - b) for a, b in values)


def _summary(runs: list[dict[str, Any]], units: int) -> dict[str, Any]:
    lengths = [r["mean_length"] for r in runs if "mean_length" in r]
    seconds = [r["seconds"] / units for r in runs]
    return {
        "seconds": statistics.median(seconds),
        "peak_gb": statistics.median(r["peak_gb"] for r in runs),
        "seconds_by_run": seconds,
        **({"completion_tokens": statistics.mean(lengths)} if lengths else {}),
    }


def run(
    stage: ModuleType, case: Case, peer_python: str, timeout: float | None = None
) -> dict[str, Any]:
    """Run one side of a case in a process of its own, and return its report.

    Args:
        timeout: Seconds after which it is killed and subprocess.TimeoutExpired is raised.
    """
    python, module = sys.executable, stage.__name__
    if case["side"] == "theirs" and stage.__name__ == "benchmarks.ppo":
        python, module = peer_python, "benchmarks.ppo_trl112"
    file = Path(case["folder"], "case.json")
    file.write_text(json.dumps(case))
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "OMP_NUM_THREADS": str(os.cpu_count()),
    }
    done = subprocess.run(
        [python, "-m", module, str(file)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    if done.returncode:
        sys.exit(f"{module} failed:\n{done.stderr[-3000:]}")
    reported: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return reported


def peak_flops(size: int = 2048, seconds: float = 2.0) -> float:
    """Measure the floating-point operations per second of a float32 matrix multiplication.

    On a GPU if there is one, else on all cores.
    """
    a, b = torch.randn(2, size, size, device="cuda" if torch.cuda.is_available() else "cpu")
    a @ b
    synchronize()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        a @ b
        synchronize()
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - started)


def machine() -> dict[str, Any]:
    """Describe what the figures were measured with: versions and machine."""
    return {
        "versions": {name: version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "machine": {
            "cores": os.cpu_count(),
            "processor": _processor(),
            "matmul_gflops": round(peak_flops() / 1e9, 1),
        },
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [x for x in info.read_text().splitlines() if "model name" in x] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def table(stage: str, case: dict[str, Any]) -> str:
    """Format the comparison of a case for the terminal."""
    ours, theirs, speedup = case["ours"], case["theirs"], case["speedup"]
    time_ratio = f"{speedup['median']:.2f}x [{speedup['min']:.2f}, {speedup['max']:.2f}]"
    seconds = f"seconds per {case['unit']}"
    return "\n".join(
        (
            f"{stage}: {case['name']}",
            f"  {'':22}{'ours':>10}  {case['peer']}",
            f"  {seconds:22}{ours['seconds']:10.3f}{theirs['seconds']:10.3f}  {time_ratio}",
            f"  {'peak memory (GB)':22}{ours['peak_gb']:10.2f}{theirs['peak_gb']:10.2f}"
            f"  1/{case['memory_ratio']:.2f}",
            f"  {'of peak FLOP/s':22}{case['flops_share']:10.0%}",
            f"  {case['equal']['what']} differ by at most {case['equal']['difference']:.1e}",
        )
    )


if __name__ == "__main__":
    run_script(main)
