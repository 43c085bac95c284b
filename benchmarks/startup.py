"""Time `import rlhf_recipes`, and the `--help` of every recipe script."""

import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cases import Setting

ROOT = Path(__file__).resolve().parents[1]
RUNS = 5

# Timed inside the process, so that the start of Python itself is not counted.
IMPORT = "import time; t = time.perf_counter(); import rlhf_recipes; print(time.perf_counter() - t)"


def record(setting: Setting) -> dict[str, Any]:
    """Time the import and every recipe's `--help`, as medians of five runs."""
    del setting  # no model and no data is opened
    names = {path.stem: str(path) for path in sorted((ROOT / "recipes").glob("*.py"))}
    timed = {"import rlhf_recipes": [import_seconds() for _ in range(RUNS)]}
    for stem, script in names.items():
        timed[f"{stem}.py --help"] = [_help_seconds(script) for _ in range(RUNS)]
    cases = [
        {"name": name, "seconds": statistics.median(runs), "seconds_by_run": runs}
        for name, runs in timed.items()
    ]
    for case in cases:
        print(f"{case['name']}: {case['seconds']:.3f} s", flush=True)
    return {"cases": cases}


def import_seconds() -> float:
    """Time `import rlhf_recipes` in a fresh Python, whose own start is not counted."""
    return float(_output([sys.executable, "-c", IMPORT]))


def _help_seconds(script: str) -> float:
    started = time.perf_counter()
    _output([sys.executable, script, "--help"])
    return time.perf_counter() - started


def _output(command: list[str]) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
