"""The machine that a process runs on: its cores and its memory."""

import ctypes
import os
import resource
import sys
from pathlib import Path
from typing import NamedTuple

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Options of glibc's `mallopt`, as malloc.h numbers them."""


def use_whole_cpu() -> None:
    """Set this process up to compute on a CPU: its share of the cores, and freed memory kept.

    Does nothing where torch has a GPU.
    """
    use_all_cores()
    keep_freed_memory()


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


class DeviceMemory(NamedTuple):
    """Memory for one process, in bytes, and whose it is."""

    size: int
    owner: str


def device_memory() -> DeviceMemory:
    """Return the memory of this process's GPU, or else its part of the machine's.

    The processes that a launcher starts on a machine without a GPU divide its memory. A limit of
    the container (cgroup v2) counts as the machine's memory.
    """
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return DeviceMemory(properties.total_memory, f"this GPU ({properties.name})")
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        size = min(size, int(text))
    processes = int(os.getenv("LOCAL_WORLD_SIZE", "1"))
    owner = "this machine" if processes == 1 else f"each of {processes} processes"
    return DeviceMemory(size // processes, owner)


def peak_memory_gb() -> float:
    """Return the peak memory of this process in GB: allocated on its GPU if any, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
