"""Run every stage on a GPU for a few minutes: `make gpu-check`. It has never run on a GPU yet.

`make gpu-check SIZE=tiny` does the same on a CPU. It needs no network: a model of random weights
in the shape of Qwen3-0.6B and random pairs go through the recipe scripts, 20 steps per stage, with
and without shared prefixes, in three precisions. The table shows time and peak memory beside what
`--plan` states. A failure is a row of the table; what the time is too short for is left out and
named.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch

from benchmarks import bench, grpo, ppo
from benchmarks.cases import COMPLETION_LENGTH, Setting
from benchmarks.synthetic import QWEN3_06B, TINY, Shape, write_model, write_pairs
from rlhf_recipes.ending import run_script
from rlhf_recipes.errors import RecipeError
from rlhf_recipes.machine import use_all_cores
from rlhf_recipes.records import write_json

ROOT = Path(__file__).resolve().parents[1]
PEER_PYTHON = ".venv-trl112/bin/python"
PRECISIONS = {
    "bf16": "--dtype bfloat16 --bf16 true",
    "4-bit": "--dtype bfloat16 --bf16 true --load_in_4bit true",
    "bf16 base": "--dtype bfloat16 --bf16 false",
}
"""Flags per precision. LoRA is in float32 in all three; `bf16` is autocast."""
STAGES = ("reward", "dpo", "ppo", "grpo", "evaluate")
PAIRS = 400  # a tenth is held out
EVAL_PROMPTS = 24


@dataclass(frozen=True)
class Size:
    """A model, the recipes that train it, and the tokens of a prompt and of a completion."""

    shape: Shape
    recipe: str
    prompt: int
    completion: int


SIZES = {
    "0.6b": Size(QWEN3_06B, "recipes/hh-rlhf/qwen3-0.6b", 256, COMPLETION_LENGTH),
    "tiny": Size(TINY, "recipes/tiny", 32, 8),
}


@dataclass(frozen=True)
class Case:
    """A stage in one precision, with shared prefixes or without."""

    stage: str
    precision: str
    sharing: bool

    @property
    def name(self) -> str:
        """The words of the table's first column."""
        shared = "shared" if self.sharing else "stock"
        return f"{self.stage}, {self.precision}, {shared} prefixes"


def cases_of(precisions: Iterable[str]) -> Iterator[Case]:
    """Yield the cases of these precisions; an evaluation shares prefixes always."""
    for precision in precisions:
        for sharing in (True, False):
            for stage in STAGES:
                if sharing or stage != "evaluate":
                    yield Case(stage, precision, sharing)


class Check:
    """One call of the check: its folder, its clock, and what it has measured.

    Args:
        folder: Gets the model, the data and the runs.
        options: The command line.
    """

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.size = SIZES[options.size]
        self.deadline = time.monotonic() + options.seconds
        self.walls: dict[str, float] = {}  # seconds that a case of each stage took
        self.results: list[dict[str, Any]] = []

    def prepare(self) -> None:
        """Write the model and the pairs, and prepare these as every recipe does."""
        write_model(self.folder / "model", self.size.shape)
        pairs = self.folder / "pairs.jsonl"
        vocabulary = self.size.shape.vocab_size
        write_pairs(pairs, vocabulary, PAIRS, self.size.prompt, self.size.completion)
        flags = ["--dataset_name", str(pairs), "--output_dir", str(self.folder)]
        ran = subprocess.run(
            [sys.executable, "recipes/prepare_data.py", *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            raise RecipeError(f"The data cannot be prepared: {ran.stderr}")

    def run(self) -> None:
        """Run all cases, the most wanted ones first."""
        self.prepare()
        first, *others = PRECISIONS
        self.run_cases(cases_of([first]))
        for module in (grpo, ppo):
            self.compare(module)
        self.run_cases(cases_of(others))

    def run_cases(self, cases: Iterable[Case]) -> None:
        """Run cases one after the other; while one runs, the next one's process imports."""
        wanted = [case for case in cases if self.options.only in case.name]
        waiting = [start_runner()] if wanted else []
        try:
            for case, following in zip_longest(wanted, wanted[1:]):
                if reason := self.reason_to_skip(case):
                    self.add(case.name, skipped=reason)
                    continue
                runner = waiting.pop()
                if following:
                    waiting.append(start_runner())
                started = time.monotonic()
                self.add(case.name, **self.measure(runner, case))
                self.walls[case.stage] = time.monotonic() - started
        finally:
            for runner in waiting:
                runner.kill()
                runner.communicate()

    def reason_to_skip(self, case: Case) -> str:
        """Say why a case cannot be run; an empty text if it can."""
        if self.remaining() < self.walls.get(case.stage, 1.0):
            return "no time left"
        if case.precision == "4-bit" and not installed("bitsandbytes"):
            return "bitsandbytes is not installed"
        needs = {"ppo": ["reward"], "grpo": ["reward"], "evaluate": ["reward", "dpo"]}
        for stage in needs.get(case.stage, ()):
            if not Path(self.model_folder(case, stage), "run.json").is_file():
                return f"there is no {stage} model"
        return ""

    def remaining(self) -> float:
        """Seconds until the check has to end."""
        return float(self.deadline - time.monotonic())

    def out(self, case: Case) -> Path:
        return self.folder / f"{case.precision}-{case.sharing}".replace(" ", "_")

    def model_folder(self, case: Case, stage: str) -> str:
        return str(self.out(case) / "models" / f"{stage}_model")

    def flags(self, case: Case) -> list[str]:
        """Return the command line of a case's recipe script."""
        stage, completion = case.stage, str(self.size.completion)
        flags = ["--config", f"{self.size.recipe}/{stage}.yaml"]
        flags += ["--dataset_name", str(self.folder / "data")]
        flags += ["--chat_template_kwargs", "null"]  # the synthetic model's template has none
        if stage in ("ppo", "grpo", "evaluate"):
            flags += ["--reward_model_path", self.model_folder(case, "reward")]
            flags += ["--max_completion_length", completion]
        if stage == "evaluate":
            flags += ["--output_dir", str(self.out(case)), "--eval_prompts", str(EVAL_PROMPTS)]
            return flags
        flags += ["--output_dir", self.model_folder(case, stage)]
        flags += ["--model_name_or_path", str(self.folder / "model")]
        flags += ["--max_steps", str(self.options.steps), "--logging_steps", "1"]
        flags += ["--save_strategy", "no", "--prefix_sharing", str(case.sharing).lower()]
        flags += PRECISIONS[case.precision].split()
        flags += [] if torch.cuda.is_available() else ["--use_cpu"]
        # With one epoch a rollout lasts 4 steps, so 20 steps are five rollouts.
        flags += ["--num_ppo_epochs", "1", "--num_eval_prompts", "8"] if stage == "ppo" else []
        return [*flags, *(["--max_eval_samples", "16"] if stage in ("reward", "dpo") else [])]

    def measure(self, runner: "subprocess.Popen[str]", case: Case) -> dict[str, Any]:
        """Run a case in a process that waits for one, and return what is to be reported."""
        given = {
            "stage": case.stage,
            "flags": self.flags(case),
            "seconds": self.options.case_seconds,
        }
        # Loading, the review at the end and a slow step are not counted in a case's seconds.
        limit = min(4 * self.options.case_seconds, max(self.remaining(), 1.0))
        try:
            out, err = runner.communicate(json.dumps(given) + "\n", timeout=limit)
        except subprocess.TimeoutExpired:
            runner.kill()
            runner.communicate()
            if self.remaining() <= 0:
                return {"skipped": "no time left to finish"}
            return {"error": f"It took longer than {limit:.0f} s, and was killed"}
        try:
            result: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        except (ValueError, IndexError):
            last = (err.strip().splitlines() or ["it said nothing"])[-1]
            return {"error": f"The process ended with status {runner.returncode}: {last}"}
        return self.with_tokens(case, result)

    def with_tokens(self, case: Case, result: dict[str, Any]) -> dict[str, Any]:
        """Add the tokens per second; a prompt counts once per completion, shared or not."""
        if "seconds_per_step" in result:
            completion = result.get("completion_tokens", self.size.completion)
            rows = result["rows_per_step"] * (2 if case.stage in ("reward", "dpo") else 1)
            tokens = rows * (self.size.prompt + completion)
            result["tokens_per_second"] = tokens / result["seconds_per_step"]
        return result

    def compare(self, module: Any) -> None:
        """Add a row with the time of a benchmark's peer divided by ours.

        For the reward model and DPO the peer is the recipe without shared prefixes: TRL's trainer.
        """
        stage = module.__name__.partition(".")[2]
        dtype = "bfloat16" if torch.cuda.is_available() else "float32"
        name = f"{stage}, {dtype}, {module.PEER}"
        if self.options.only not in name:
            return
        if module is ppo and not Path(PEER_PYTHON).exists():
            self.add(name, skipped="TRL 1.12 is not installed: make bench STAGE=ppo installs it")
            return
        if self.remaining() < self.walls.get(stage, 1.0):
            self.add(name, skipped="no time left")
            return
        longest = self.size.prompt + COMPLETION_LENGTH
        data, model = str(self.folder / "pairs.jsonl"), str(self.folder / "model")
        try:
            setting = Setting(self.folder, data, model, longest, dtype)
            case = module.cases(setting)[0]
            sides = {
                side: bench.run(
                    module, {**case, "side": side}, PEER_PYTHON, timeout=max(self.remaining(), 1.0)
                )
                for side in ("ours", "theirs")
            }
        except subprocess.TimeoutExpired:
            self.add(name, skipped="no time left to finish")
        except (Exception, SystemExit) as error:
            self.add(name, error=str(error).strip().splitlines()[-1])
        else:
            ours, theirs = sides["ours"], sides["theirs"]
            self.add(
                name,
                peak_gb=theirs["peak_gb"],
                speedup=theirs["seconds"] / ours["seconds"],
                memory_ratio=theirs["peak_gb"] / ours["peak_gb"],
            )

    def add(self, name: str, **result: Any) -> None:
        """Keep a result, and say that it is there."""
        self.results.append({"name": name, **result})
        outcome = result.get("error") or result.get("skipped") or "done"
        print(f"{name}: {outcome}", flush=True)


def start_runner() -> "subprocess.Popen[str]":
    """Start a process that imports what recipes need, and then waits for a case."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.recipe_run"],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def installed(package: str) -> str | None:
    """Return the version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    """Describe the card, or the processor where there is none, and the versions."""
    gpu = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if gpu else None
    return {
        "card": properties.name if properties else None,
        "card_memory_gb": properties.total_memory / 1e9 if properties else None,
        "cuda": torch.version.cuda,
        "peak_gb_is": "allocated on the GPU" if gpu else "resident memory of the process",
        "versions": {name: installed(name) for name in (*bench.LIBRARIES, "bitsandbytes")},
        "python": platform.python_version(),
    }


def with_speedups(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each case with shared prefixes how many times as fast it is as without."""
    seconds = {r["name"]: r.get("seconds_per_step") for r in results}
    for result in results:
        stock = seconds.get(result["name"].replace("shared", "stock"))
        if "shared" in result["name"] and stock and result.get("seconds_per_step"):
            result["speedup"] = stock / result["seconds_per_step"]
    return results


COLUMNS = {
    "steps": ("steps", "{}"),
    "seconds_per_step": ("s per step", "{:.3f}"),
    "tokens_per_second": ("tokens per s", "{:,.0f}"),
    "peak_gb": ("peak GB", "{:.2f}"),
    "plan_gb": ("planned GB", "{:.2f}"),
    "stage_seconds": ("stage, s", "{:.1f}"),
    "speedup": ("times stock", "{:.2f}"),
}


def table(results: list[dict[str, Any]]) -> str:
    """Return one row per case: its measurements, or its error, or why it was left out."""
    lines = [f"{'':40}" + "".join(f"{title:>13}" for title, _ in COLUMNS.values())]
    for result in results:
        cells = [
            form.format(result[key]) if key in result else "" for key, (_, form) in COLUMNS.items()
        ]
        row = f"{result['name']:40}" + "".join(f"{cell:>13}" for cell in cells)
        if "skipped" in result:
            row = f"{result['name']:40}   skipped: {result['skipped']}"
        if "error" in result:
            row = f"{result['name']:40}   FAILED: {result['error']}"
        lines.append(row.rstrip())
    return "\n".join(lines)


def main() -> None:
    """Check this machine; the status is 1 if a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="0.6b")
    parser.add_argument("--steps", type=int, default=20, help="Training steps per stage.")
    parser.add_argument("--seconds", type=float, default=520, help="Time for all of it.")
    parser.add_argument(
        "--case_seconds", type=float, default=25, help="Training ends after these, per case."
    )
    parser.add_argument("--only", default="", help="Run only the cases whose name contains this.")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if options.size != "tiny" and not torch.cuda.is_available():
        raise RecipeError(
            "There is no GPU: torch.cuda.is_available() is false. "
            "`make gpu-check SIZE=tiny` runs the same stages on a tiny model and a CPU."
        )
    use_all_cores()
    with tempfile.TemporaryDirectory() as folder:
        check = Check(Path(folder), options)
        check.run()
    results = with_speedups(check.results)
    record = {"size": options.size, **machine(), "cases": results}
    write_json(options.output_dir / "gpu_check.json", record)
    card = record["card"] or "no GPU"
    print(f"\n{card}, torch {torch.__version__}; peak GB: {record['peak_gb_is']}\n{table(results)}")
    failed = [result["name"] for result in results if "error" in result]
    if failed:
        print(f"\n{len(failed)} of {len(results)} cases failed.")
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
