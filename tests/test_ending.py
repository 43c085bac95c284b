"""How commands end: a sentence and a status, and no traceback for what a user can change."""

import os
import signal
import subprocess
import sys
import warnings
from functools import partial

import pytest

from rlhf_recipes.ending import run_script

START = """
import os, pathlib, signal, sys, time
from rlhf_recipes.ending import ended_by_a_sentence
from rlhf_recipes.records import write_json
folder = pathlib.Path(sys.argv[1])
with ended_by_a_sentence():
"""


def ended(body, folder, **options):
    """Run these lines as a script; the finished process."""
    code = START + "".join(f"    {line}\n" for line in body.splitlines())
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, **options
    )


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, "Ended by SIGTERM.")],
)
def test_signals_end_with_a_sentence_and_their_status(tmp_path, number, status, said):
    done = ended(f"os.kill(os.getpid(), {int(number)})\ntime.sleep(30)", tmp_path)
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert "the same command goes on" in done.stderr
    assert "Traceback" not in done.stderr


def test_notes_say_what_is_kept(tmp_path):
    body = "error = KeyboardInterrupt()\nerror.add_note('checkpoint-4 is kept.')\nraise error"
    assert ended(body, tmp_path).stderr == "Interrupted. checkpoint-4 is kept.\n"


def test_a_file_where_a_folder_is_needed_is_told(tmp_path):
    (tmp_path / "out").write_text("a file")
    for name in ("out/x.json", "out/models/x.json"):
        done = ended("write_json(folder, 1)", tmp_path / name)
        assert done.returncode == 2
        assert "remove the file that stands where a folder is needed" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_limit_on_file_sizes_keeps_the_old_file_whole(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("old")
    body = (
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_json(folder, 'x' * 5000)"
    )
    done = ended(body, path)
    assert done.returncode == 2
    assert "ulimit -f" in done.stderr and "Traceback" not in done.stderr
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system can be mounted by root alone")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


WRITERS = {
    "json": "write_json(folder / 'x.json', 'x' * 200_000)",
    "safetensors": "import torch, safetensors.torch as s\n"
    "s.save_file({'a': torch.ones(100_000)}, folder / 'a.safetensors')",
    "shutil": "import shutil\n"
    "(folder.parent / 'from').mkdir()\n"
    "(folder.parent / 'from' / 'x').write_bytes(b'x' * 200_000)\n"
    "shutil.copytree(folder.parent / 'from', folder / 'to')",
    "torch to a file": "import torch\n"
    "with open(folder / 'x.pt', 'wb') as file:\n"
    "    torch.save({'a': torch.ones(100_000)}, file)",
    "torch": "import torch\ntorch.save({'a': torch.ones(100_000)}, folder / 'optimizer.pt')",
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_told_whoever_writes(small_disk, kind):
    done = ended(WRITERS[kind], small_disk)
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr and "Free disk space" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_read_only_folder_is_told(small_disk):
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True, capture_output=True)
    done = ended("write_json(folder / 'x.json', 1)", small_disk)
    assert done.returncode == 2
    assert "Mount it for writing" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("refused", ["open('closed')", "open('new', 'w')"])
def test_a_missing_permission_is_told(tmp_path, refused):
    """To root, who may do everything, as another user."""
    (tmp_path / "closed").touch(mode=0)
    tmp_path.chmod(0o511)
    body = f"os.chdir(folder)\nos.getuid() == 0 and os.setuid(65534)\n{refused}"
    done = ended(body, tmp_path)
    tmp_path.chmod(0o700)
    assert done.returncode == 2, done.stderr
    assert "cannot be accessed (Permission denied). Change its permissions." in done.stderr


def test_a_mistake_of_the_code_keeps_its_traceback(tmp_path):
    done = ended("open(folder / 'missing')", tmp_path)
    assert done.returncode == 1
    assert "FileNotFoundError" in done.stderr


def test_a_file_that_cannot_be_read_is_not_said_to_be_unwritable(tmp_path):
    (tmp_path / "file").write_text("text")
    for name, remedy in ((".", "remove the folder"), ("file/x", "remove the file")):
        done = ended("folder.read_text()", tmp_path / name)
        assert done.returncode == 2
        assert "cannot be accessed" in done.stderr and remedy in done.stderr


def test_a_mistake_made_while_a_disk_error_is_handled_keeps_its_traceback(tmp_path):
    body = "try:\n    folder.read_text()\nexcept OSError as error:\n    error.missing"
    done = ended(body, tmp_path)
    assert done.returncode == 1
    assert "AttributeError" in done.stderr.splitlines()[-1]


SCRIPT = """
import atexit
from rlhf_recipes.ending import run_script
atexit.register(lambda: print("cleaned up"))
run_script(lambda: print("done"))
"""


@pytest.mark.parametrize(("rank", "said"), [("0", "done\ncleaned up\n"), ("1", "done\n")])
def test_all_processes_of_a_launch_but_the_first_end_without_clean_up(rank, said):
    environment = {**os.environ, "RANK": rank}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_a_script_shows_warnings_but_those_that_libraries_give_each_other():
    shown = [
        (FutureWarning, "`truncation_mode='keep_end'` is deprecated", True),
        (FutureWarning, "`gradient_checkpointing` is deprecated", False),
        (UserWarning, "You are using 'rollout_func'", False),
    ]
    for category, text, is_shown in shown:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run_script(partial(warnings.warn, text, category))
        assert [str(warning.message) for warning in told] == [text] * is_shown
