"""What both sides of a benchmark share: read a case, time a call, report. No third-party import."""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_case(file: str) -> dict[str, Any]:
    """The case that the bench wrote."""
    case: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    return case


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def report(**values: Any) -> None:
    """Print one line of JSON: the values, and the most memory the process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    sys.stdout.write("\n" + json.dumps({**values, "peak_gb": peak}) + "\n")
