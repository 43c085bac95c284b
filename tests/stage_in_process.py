"""Run a stage in the process of the tests, and see what its models read."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.modules.module import register_module_forward_pre_hook


def run(root: Path, script: str, recipe: dict[str, Any]) -> list[list[int]]:
    """Run a stage in this process; return every row of token ids that a model embedded."""
    rows: list[list[int]] = []

    def record(module, inputs):
        if isinstance(module, torch.nn.Embedding):
            rows.extend(inputs[0].tolist())

    file = Path(recipe["output_dir"]).with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(recipe))
    threads, hook = torch.get_num_threads(), register_module_forward_pre_hook(record)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(root)
            patch.setattr(sys, "argv", [script, "--config", str(file)])
            runpy.run_path(str(root / "recipes" / f"{script}.py"))["main"]()
    finally:
        hook.remove()
        torch.set_num_threads(threads)
    return rows
