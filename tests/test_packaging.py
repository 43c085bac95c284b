"""What is installed: bounds for any environment, and the exact versions of the tests."""

import re
import shutil
import subprocess
import sys
import tomllib
import venv

from packaging.requirements import Requirement

TEMPLATES = "rlhf_recipes/evaluation/report/templates"
PROGRAM = """
import sys
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import Trainer
from trl import DPOConfig, DPOTrainer

import rlhf_recipes
from rlhf_recipes import PPOConfig, PPOTrainer, share_prefixes
from rlhf_recipes.models.loading import base_path

assert Path(rlhf_recipes.__file__).is_relative_to(sys.prefix), rlhf_recipes.__file__
assert issubclass(PPOTrainer, Trainer) and PPOConfig("ppo", bf16=False).cliprange == 0.2
pairs = [{"prompt": f"Is {i} even?", "chosen": " Yes.", "rejected": " No."} for i in range(4)]
trainer = DPOTrainer(
    base_path("tiny"),
    args=DPOConfig("run", max_steps=1, use_cpu=True, bf16=False, report_to="none"),
    train_dataset=Dataset.from_list(pairs),
    peft_config=LoraConfig(r=2, target_modules=["q_proj"]),
)
print(share_prefixes(trainer.model), trainer.train().training_loss)
"""


def requirements(lines):
    texts = (re.sub(r"\s+#.*", "", line).strip() for line in lines)
    return {r.name: r for r in map(Requirement, filter(lambda t: t and t[0] != "#", texts))}


def test_what_was_tested_lies_within_the_bounds(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    bounds = requirements(project["dependencies"])
    tested = requirements((root / "requirements.txt").read_text().splitlines())
    assert set(bounds) == set(tested) - {"evaluate"}  # which hub_modules/ alone import
    for name, requirement in tested.items():
        for specifier in requirement.specifier:
            version = specifier.version.removesuffix(".*")
            if specifier.operator in ("==", ">=") and name in bounds:
                assert bounds[name].specifier.contains(f"{version}.0"), name


def test_no_bound_holds_a_torch_of_ones_own_fast(root):
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    torch = requirements(project["dependencies"])["torch"].specifier
    assert {s.operator for s in torch} == {">=", "<"}


def test_an_installed_package_needs_no_checkout(root, tmp_path):
    """After `pip install .` beside the libraries, a program in another folder trains with it."""
    source, home = tmp_path / "source", tmp_path / "home"
    home.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "rlhf_recipes", source / "rlhf_recipes", ignore=ignored)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(root / name, source)
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # Folders that are added by a .pth file have no .pth files of their own read: an editable
    # install of this checkout is not among the libraries.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"),
            *("--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed", str(source)),
        ],
        check=True,
    )
    templates = {path.name for path in (root / TEMPLATES).iterdir()}
    assert templates == {path.name for path in (site / TEMPLATES).iterdir()}
    ran = subprocess.run([python, "-c", PROGRAM], cwd=home, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.splitlines()[-1].startswith("True 0.693")
