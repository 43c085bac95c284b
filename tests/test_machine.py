import platform
import subprocess
import sys

import pytest
import torch

from rlhf_recipes.machine import use_all_cores


@pytest.mark.skipif(torch.cuda.is_available(), reason="threads are a CPU's concern")
def test_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    before = torch.get_num_threads()
    try:
        for processes, threads in (("1", 6), ("2", 3), ("8", 1)):
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
            use_all_cores()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


FREED_MEMORY = """
import resource, sys, torch
from rlhf_recipes.machine import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(15):
    torch.ones(100 * 2**20)
before = faults()
for _ in range(10):
    torch.ones(100 * 2**20)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator is set")
@pytest.mark.skipif(torch.cuda.is_available(), reason="host memory is a CPU's concern")
def test_memory_that_was_freed_is_used_again():
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FREED_MEMORY, how]))
        for how in ("kept", "given back")
    }
    # Ten tensors of 400 MB, after fifteen: the first few do not fit where the last one was, for
    # its alignment and for small objects between them.
    assert 3 * faults["kept"] < faults["given back"]
