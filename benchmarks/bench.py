"""Time a stage against its peer on the same work: `python -m benchmarks.bench ppo`.

The two sides run in turn, each in a process of its own with all cores, at least three times. A run
writes `benchmarks/results/<stage>.json` and prints a table.
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
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")


def main() -> None:
    """Run the cases of a stage and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["ppo"])
    parser.add_argument("--dataset_name", default="recipes/demo/preferences")
    parser.add_argument("--peer_python", required=True, help="Python of the peer's environment.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--case", help="Only the cases whose name has this in it.")
    options = parser.parse_args()
    stage = importlib.import_module(f"benchmarks.{options.stage}_cases")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for case in stage.cases(Path(folder), options.dataset_name):
            if (options.case or "") in case["name"]:
                found.append(compare(stage, case, options.peer_python, options.runs))
                print(row(found[-1]), flush=True)
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    record = {"cases": found, "dataset": options.dataset_name, **machine()}
    (results / f"{options.stage}.json").write_text(json.dumps(record, indent=2) + "\n")


def compare(stage: Any, case: dict[str, Any], peer_python: str, runs: int) -> dict[str, Any]:
    """Both sides of a case in turn; medians, and the ratios of neighbouring runs."""
    ours, theirs = [], []
    for number in range(runs):
        for python, module, into in (
            (sys.executable, stage.OURS, ours),
            (peer_python, stage.THEIRS, theirs),
        ):
            into.append(run(python, module, case))
            seconds = into[-1]["seconds"] / case["episodes"]
            print(f"  {case['name']}, run {number + 1}, {module}: {seconds:.2f} s", flush=True)
    flops = run(sys.executable, stage.OURS, {**case, "count_flops": True})["flops"]
    ratios = [t["seconds"] / o["seconds"] for o, t in zip(ours, theirs, strict=True)]
    difference = max(
        abs(a - b) for a, b in zip(ours[0]["scores"], theirs[0]["scores"], strict=True)
    )
    mine, peer = (_median(side, case["episodes"]) for side in (ours, theirs))
    return {
        "name": case["name"],
        "peer": stage.PEER,
        "unit": stage.UNIT,
        "ours": mine,
        "theirs": peer,
        "speedup": {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        },
        "memory_ratio": peer["peak_gb"] / mine["peak_gb"],
        "equal": {"what": stage.EQUAL, "difference": difference},
        "flops_share": flops / case["episodes"] / mine["seconds"] / peak_flops(),
    }


def _median(side: list[dict[str, Any]], units: int) -> dict[str, float]:
    return {
        "seconds": statistics.median(s["seconds"] for s in side) / units,
        "peak_gb": statistics.median(s["peak_gb"] for s in side),
    }


def run(python: str, module: str, case: dict[str, Any]) -> dict[str, Any]:
    """What one side of a case reports."""
    file = Path(case["folder"], "case.json")
    file.write_text(json.dumps(case))
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "OMP_NUM_THREADS": str(os.cpu_count()),
    }
    done = subprocess.run(
        [python, "-m", module, str(file)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{module} failed:\n{done.stderr[-3000:]}")
    reported: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return reported


def peak_flops(size: int = 2048, seconds: float = 2.0) -> float:
    """Floating-point operations a second of a float32 matrix multiplication on all cores."""
    a, b = torch.randn(2, size, size)
    a @ b
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        a @ b
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - started)


def machine() -> dict[str, Any]:
    """What the figures were measured with."""
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


def row(case: dict[str, Any]) -> str:
    """A line of the table."""
    speedup, ours, theirs = case["speedup"], case["ours"], case["theirs"]
    return (
        f"{case['name']}: {ours['seconds']:.2f} s an {case['unit']} and {ours['peak_gb']:.2f} GB; "
        f"{case['peer']} {theirs['seconds']:.2f} s and {theirs['peak_gb']:.2f} GB; "
        f"{speedup['median']:.2f}x [{speedup['min']:.2f}, {speedup['max']:.2f}] the speed, "
        f"1/{case['memory_ratio']:.1f} of the memory, {case['flops_share']:.0%} of peak FLOP/s; "
        f"{case['equal']['what']} differ by {case['equal']['difference']:.1e}"
    )


if __name__ == "__main__":
    main()
