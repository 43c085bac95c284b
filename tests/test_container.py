"""The Dockerfile, as far as it can be checked without a container engine: its instructions."""

import json
import re
import shlex
from pathlib import PurePosixPath

import pytest


@pytest.fixture(scope="module")
def steps(root):
    """The instructions of the Dockerfile as pairs: their name, and the rest of them."""
    lines = (root / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    return [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]


def given(steps, name):
    return [text for step, text in steps if step == name]


def place(steps, name, contained):
    return next(i for i, (step, text) in enumerate(steps) if step == name and contained in text)


def test_everything_but_the_packages_of_debian_is_done_without_root_rights(steps):
    (user,) = given(steps, "USER")
    assert user not in ("root", "0")
    as_root = [text for step, text in steps[: place(steps, "USER", user)] if step == "RUN"]
    assert len(as_root) == 1
    assert re.search(rf"useradd .*--uid 1000 {user}\b", as_root[0])
    assert place(steps, "USER", user) < place(steps, "RUN", "make install")
    assert all(f"--chown={user}" in text for text in given(steps, "COPY"))


def test_outputs_and_downloads_are_in_volumes_of_that_user(root, steps):
    (user,), (workdir,), (volumes,) = (given(steps, n) for n in ("USER", "WORKDIR", "VOLUME"))
    settings = dict(text.split("=") for text in given(steps, "ENV"))
    out = re.search(r"^OUT = (\S+)$", (root / "Makefile").read_text(), re.MULTILINE)
    assert out is not None
    assert json.loads(volumes) == [f"{workdir}/{out[1]}", settings["HF_HOME"]]
    # A volume takes the owner of the folder that it covers, so that is made before.
    prepared = given(steps[: place(steps, "USER", user)], "RUN")[0]
    made, owned = (
        shlex.split(part)[2:] for part in prepared.split("&&") if re.match(r" *(mkdir|chown)", part)
    )
    assert made == json.loads(volumes)
    assert owned == [user, *dict.fromkeys(_below(volume, owned) for volume in made)]


def _below(folder, owned):
    """The folder of those that are given to the user in which this one is."""
    return next(name for name in owned if PurePosixPath(folder).is_relative_to(name))


def test_the_base_is_one_release_of_debian_and_of_a_python_that_the_package_takes(root, steps):
    (base,) = given(steps, "FROM")
    found = re.fullmatch(r"python:3\.(\d+)-slim-(bookworm|trixie)", base)
    assert found is not None
    wanted = re.search(r'requires-python = ">=3\.(\d+)"', (root / "pyproject.toml").read_text())
    assert wanted is not None
    assert int(found[1]) >= int(wanted[1])


def test_what_the_installation_reads_is_copied_before_it(root, steps):
    copied = {name for text in given(steps[: place(steps, "RUN", "make install")], "COPY")
              for name in text.split() if (root / name).is_file()}  # fmt: skip
    project = (root / "pyproject.toml").read_text()
    read = {"Makefile", "pyproject.toml", "requirements.txt", "requirements-dev.txt"}
    read |= set(re.findall(r'^readme = "(.+)"', project, re.MULTILINE))
    read |= set(re.findall(r'license-files = \["(.+)"\]', project))
    assert read <= copied
    ignored = (root / ".dockerignore").read_text().split()
    assert not copied & set(ignored)
    assert {".git", ".venv*", "outputs*"} <= set(ignored)


@pytest.mark.parametrize("document", ["Dockerfile", "docs/index.md"])
def test_a_documented_run_gives_gpus_and_both_volumes(root, steps, document):
    (volumes,) = given(steps, "VOLUME")
    text = re.sub(r"\\\n[# ]*", "", (root / document).read_text())
    runs = [line for line in text.splitlines() if "docker run --gpus all" in line]
    assert runs and "docker build --tag rlhf_recipes ." in text
    for line in runs:
        assert re.findall(r"-v [\w-]+:(\S+)", line) == json.loads(volumes)


def test_the_default_command_is_the_list_of_targets(steps):
    assert [json.loads(given(steps, name)[0]) for name in ("ENTRYPOINT", "CMD")] == [
        ["make"],
        ["help"],
    ]
