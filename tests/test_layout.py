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

LAZY = {"rlhf_recipes"}
BANNED_NAMES = {"utils", "common", "helpers"}
SHAPE = ["Expr", "Assign", "FunctionDef", "If"]
# `_prepare_inputs` is the seam that TRL's own online trainers fill, `_attn_implementation` is what
# `set_attn_implementation` sets and has no other name, `os._exit` is documented; the rest are
# namedtuple's.
ALLOWED_PRIVATE = {
    *("_prepare_inputs", "_attn_implementation", "_exit"),
    *("_replace", "_asdict", "_fields", "_make"),
}

# PyTorch's examples of extending it import these modules, which have no public alias.
FOR_EXTENDING = ("torch.utils._python_dispatch", "torch.utils._pytree")


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


NAMES = {module_name(path) for path in MODULES}


def test_there_is_something_to_check():
    assert len(SCRIPTS) == 7
    assert all((MODULES, TESTS, DOCUMENTS))


def room(module):
    """The folder that a module is in; a module that stands beside the rooms is one by itself."""
    path = PACKAGE.parent / module.replace(".", "/")
    inside = path if path.is_dir() else path.parent
    return module if inside in (PACKAGE, PACKAGE / "evaluation") else module_name(inside / "x")[:-2]


def test_rooms_import_each_other_one_way():
    """No room imports, by way of others, a room that imports it; the lazy public names aside."""
    rooms: dict[str, set[str]] = {}
    for path in MODULES:
        own = module_name(path)
        if own in LAZY:
            continue
        found = {name for name in imports(path) if name in NAMES}
        found = {n for n in found if not any(m.startswith(f"{n}.") for m in found)}
        rooms.setdefault(room(own), set()).update(room(name) for name in found)
    for name, needed in rooms.items():
        needed.discard(name)
    assert set(TopologicalSorter(rooms).static_order()) >= {"rlhf_recipes.models"}


@pytest.mark.parametrize(
    ("lower", "uppers"),
    {
        "models": ("generation", "prefix_sharing", "ppo", "evaluation", "training", "preferences"),
        "generation": ("ppo", "evaluation", "training", "rewards"),
        "preferences": ("ppo", "evaluation", "training", "planning", "checks"),
        "evaluation.metrics": ("evaluation.collect", "evaluation.report", "ppo", "models"),
        "evaluation.report": ("evaluation.collect", "ppo", "models"),
        "ppo": ("evaluation", "training", "planning", "checks"),
    }.items(),
)
def test_a_room_knows_nothing_of_those_above_it(lower, uppers):
    inside = PACKAGE / lower.replace(".", "/")
    banned = tuple(f"rlhf_recipes.{upper}" for upper in uppers)
    for path in MODULES:
        if path.is_relative_to(inside):
            above = [n for n in imports(path) if any(f"{n}.".startswith(f"{b}.") for b in banned)]
            assert not above, short(path)


ROOMS = {"metrics": set(), "collect": {"metrics"}, "report": {"metrics"}}


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_of_evaluation_import_downwards(room):
    """metrics/ imports neither collect/ nor report/, which import metrics/ at most."""
    evaluation = "rlhf_recipes.evaluation"
    paths = sorted((PACKAGE / "evaluation" / room).glob("*.py"))
    names = {name for path in paths for name in imports(path)}
    used = {r for r in ROOMS if any(f"{n}.".startswith(f"{evaluation}.{r}.") for n in names)}
    assert paths and used - {room} <= ROOMS[room]


def test_no_module_imports_itself_by_way_of_others():
    graph = {}
    for path in MODULES:
        found = NAMES & set(imports(path))
        # `from package import module` needs the module, not what else is in the package.
        graph[module_name(path)] = {
            n for n in found if not any(m.startswith(f"{n}.") for m in found)
        }
    assert set(TopologicalSorter(graph).static_order()) == NAMES


def test_upstream_is_imported_by_public_names():
    for path in SOURCES + TESTS:
        for name in imports(path):
            assert not name.startswith("trl.") or name.count(".") == 1, (
                f"{name}: use `from trl import`"
            )
            assert name not in {"trl.trainer", "trl.experimental"}
            private = any(part.startswith("_") for part in name.split("."))
            assert not private or name.startswith(FOR_EXTENDING), name


def test_private_names_are_our_own():
    """A private attribute is read only in a file that defines it."""
    for path in SOURCES:
        tree = tree_of(path)
        defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        used: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr):
                (used if isinstance(node.ctx, ast.Load) else defined).add(node.attr)
        assert used <= defined | ALLOWED_PRIVATE, short(path)


def test_what_analyses_loads_no_model_library():
    """Only what collects has the models; everything else reads what it saved."""
    paths = [
        path for path in (PACKAGE / "evaluation").rglob("*.py") if path.parent.name != "collect"
    ]
    code = (
        f"import sys, {', '.join(map(module_name, paths))}; sys.stdout.write(' '.join(sys.modules))"
    )
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


def test_a_file_is_named_after_what_it_holds():
    for path in SOURCES + TESTS:
        assert path.stem not in BANNED_NAMES, short(path)


def test_files_and_functions_are_short():
    for path in SOURCES:
        budget = 70 if path in SCRIPTS else 400
        assert len(path.read_text(encoding="utf-8").splitlines()) <= budget, short(path)
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 60, f"{short(path)}: {node.name} has {length} lines"


def test_no_tolerance_is_so_wide_that_a_test_cannot_fail():
    for path in TESTS:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.keyword) and node.arg in {"rtol", "atol", "rel"}:
                tolerance = float(ast.literal_eval(node.value))
                assert tolerance <= 1e-2, f"{short(path)}, line {node.value.lineno}"


def test_the_scripts_have_one_shape():
    """A docstring with the command, ARGUMENTS, a `main` that parses them first, and its call."""
    for path in SCRIPTS:
        tree = tree_of(path)
        command = f"recipes/{path.name} --config recipes/demo/{path.stem}.yaml"
        assert command in (ast.get_docstring(tree) or ""), short(path)
        body = [node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
        assert [type(node).__name__ for node in body] == SHAPE, short(path)
        _, arguments, main, call = body
        assert arguments.targets[0].id == "ARGUMENTS"
        assert main.name == "main"
        first = main.body[1] if ast.get_docstring(main) else main.body[0]
        assert ast.unparse(first.value) == "parse_recipe(*ARGUMENTS)"
        assert ast.unparse(call) == "if __name__ == '__main__':\n    run_script(main)"


def test_every_path_and_target_that_a_document_names_exists():
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        code = "\n".join(re.findall(r"(?ms)```.*?```|`[^`\n]+`|^ {4}[^\n]+", text))
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        folders = r"recipes|accelerate_configs|rlhf_recipes|tests|benchmarks"
        paths = re.findall(rf"(?<![\w./])(?:{folders})/[\w./-]*\w", code)
        assert {name for name in paths if not (ROOT / name).exists()} == set()
        assert set(re.findall(r"\bmake ([a-z-]+)", code)) <= set(targets)
