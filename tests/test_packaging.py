"""What is installed: bounds for any environment, and the exact versions of the tests."""

import re
import tomllib

from packaging.requirements import Requirement


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
