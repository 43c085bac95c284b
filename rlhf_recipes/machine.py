"""The machine that a process runs on: its cores, its memory, and the processes of one launch."""

import ctypes
import logging
import os
import resource
import sys
from typing import NoReturn

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of glibc's `mallopt`, as malloc.h numbers them."""


def use_all_cores() -> None:
    """Set the number of threads of torch to this process's share of the cores; only without a GPU.

    `accelerate launch` and torchrun set OMP_NUM_THREADS to 1, which suits GPUs; on a CPU it leaves
    all cores but one idle. The cores are those this process may use (`taskset` limits them).
    """
    if torch.cuda.is_available():
        return
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    processes = int(os.getenv("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, cores // processes))


def keep_freed_memory() -> None:
    """Tell glibc to keep the memory of freed tensors for later ones; only without a GPU.

    By default large tensors are given back to the kernel, which clears every page again at the
    next step: a fifth of all processor time in DPO on a virtual machine. The peak stays the same.
    """
    if sys.platform == "linux" and not torch.cuda.is_available():
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
                libc.mallopt(option, value)


def peak_memory_gb() -> float:
    """Return the peak memory of this process in GB: allocated on its GPU if any, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def end_process() -> NoReturn:
    """End this process at once with status 0, without the clean-up of Python and C++.

    For the processes that have nothing left to do while the first one writes the run folder. With
    two CPU processes the clean-up aborted one run in fifteen (a thread of torch was still alive),
    and the launcher then killed the first process too.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
