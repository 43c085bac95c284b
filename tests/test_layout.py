"""The shape of the repository, read from its source: what imports what, and how long things are."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "rlhf_recipes"
SCRIPTS = sorted((ROOT / "recipes").glob("*.py"))
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = MODULES + sorted((ROOT / "recipes").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FOLDERS = (".", "docs", "benchmarks", "recipes/**")
DOCUMENTS = sorted(path for folder in FOLDERS for path in ROOT.glob(f"{folder}/*.md"))

UPPER = {f"rlhf_recipes.{name}" for name in ("plan", "training", "ppo", "evaluation")}
BANNED_NAMES = {"utils", "common", "helpers"}
# `_prepare_inputs` is the seam that TRL's own online trainers fill, `_attn_implementation` is what
# `set_attn_implementation` sets and has no other name, `os._exit` is documented; the rest are
# namedtuple's.
ALLOWED_PRIVATE = {
    *("_prepare_inputs", "_attn_implementation", "_exit"),
    *("_replace", "_asdict", "_fields", "_make"),
}


def short(path):
    return str(path.relative_to(ROOT))


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path):
    """The full names of what a file imports, wherever in it: `from a import b` gives a and a.b."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_there_is_something_to_check():
    assert len(SCRIPTS) == 6
    assert all((MODULES, TESTS, DOCUMENTS))


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_imports_point_one_way(path):
    own = module_name(path)
    upper = any(own == name or own.startswith(f"{name}.") for name in UPPER)
    for name in imports(path):
        assert not name.startswith("recipes")
        assert upper or not any(name == u or name.startswith(f"{u}.") for u in UPPER), (
            f"{own} is a plain module and imports {name}"
        )


def test_no_module_imports_itself_by_way_of_others():
    names = {module_name(path) for path in MODULES}
    graph = {}
    for path in MODULES:
        found = names & set(imports(path))
        # `from package import module` needs the module, not what else is in the package.
        graph[module_name(path)] = {
            n for n in found if not any(m.startswith(f"{n}.") for m in found)
        }
    assert set(TopologicalSorter(graph).static_order()) == names


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=short)
def test_upstream_is_imported_by_public_names(path):
    for name in imports(path):
        assert not name.startswith("trl.") or name.count(".") == 1, f"{name}: use `from trl import`"
        assert name not in {"trl.trainer", "trl.experimental"}
        assert not any(part.startswith("_") for part in name.split(".")), name


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_private_names_are_our_own(path):
    """A private attribute is read only in a file that defines it."""
    tree = tree_of(path)
    defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    used: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.attr)
    assert used <= defined | ALLOWED_PRIVATE


def test_what_analyses_loads_no_model_library():
    """What collects and review.py have models; everything else reads what they saved."""
    paths = (PACKAGE / "evaluation").glob("*.py")
    models = {"collect", "identity", "measure", "panel", "review"}
    names = sorted(module_name(path) for path in paths if path.stem not in models)
    code = f"import sys, {', '.join(names)}; sys.stdout.write(' '.join(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not {"torch", "trl", "peft"} & set(ran.stdout.split())


def test_importing_the_package_does_nothing_else():
    code = """
import logging, socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")
socket.socket = refuse
before = set(sys.modules)
import rlhf_recipes
assert "PPOTrainer" in dir(rlhf_recipes)
assert not logging.root.handlers
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
sys.stdout.write(" ".join(loaded - sys.stdlib_module_names))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "rlhf_recipes"


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=short)
def test_a_file_is_named_after_what_it_holds(path):
    assert path.stem not in BANNED_NAMES


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_files_and_functions_are_short(path):
    budget = 70 if path in SCRIPTS else 400
    assert len(path.read_text(encoding="utf-8").splitlines()) <= budget
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", TESTS, ids=short)
def test_no_tolerance_is_so_wide_that_a_test_cannot_fail(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.keyword) and node.arg in {"rtol", "atol", "rel"}:
            assert float(ast.literal_eval(node.value)) <= 1e-2, f"line {node.value.lineno}"


@pytest.mark.parametrize("path", SCRIPTS, ids=short)
def test_the_scripts_have_one_shape(path):
    """A docstring with the command, ARGUMENTS, a `main` that parses them first, and its call."""
    tree = tree_of(path)
    command = f"recipes/{path.name} --config recipes/demo/{path.stem}.yaml"
    assert command in (ast.get_docstring(tree) or "")
    body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    assert [type(node).__name__ for node in body] == ["Expr", "Assign", "FunctionDef", "If"]
    _, arguments, main, call = body
    assert arguments.targets[0].id == "ARGUMENTS"
    assert main.name == "main"
    first = main.body[1] if ast.get_docstring(main) else main.body[0]
    assert ast.unparse(first.value) == "parse_recipe(*ARGUMENTS)"
    assert ast.unparse(call) == "if __name__ == '__main__':\n    run(main)"


@pytest.mark.parametrize("path", DOCUMENTS, ids=short)
def test_every_path_and_target_that_a_document_names_exists(path):
    text = path.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"(?ms)```.*?```|`[^`\n]+`|^ {4}[^\n]+", text))
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    folders = r"recipes|accelerate_configs|rlhf_recipes|tests|benchmarks"
    paths = re.findall(rf"(?<![\w./])(?:{folders})/[\w./-]*\w", code)
    assert {name for name in paths if not (ROOT / name).exists()} == set()
    assert set(re.findall(r"\bmake ([a-z]+)", code)) <= set(targets)
