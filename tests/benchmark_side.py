"""A side of a benchmark that reports what its case says: `-m tests.benchmark_side CASE.json`."""

import json
import sys
from pathlib import Path

PEER, UNIT, EQUAL = "a peer", "pair", "losses"


def main() -> None:
    """Print the side's report; in a run that counts, the operations alone."""
    case = json.loads(Path(sys.argv[1]).read_text())
    found = {"flops": case["flops"]} if case["count_flops"] else case["reports"][case["side"]]
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
