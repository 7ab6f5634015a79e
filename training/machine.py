"""What a job runs on: this machine, and the versions of what it runs with."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from models.cpu import CPU
from models.encoder import settled_dtype

GIB = 1 << 30
CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
PACKAGES = ("llmemb", "torch", "transformers", "peft", "numpy")


class Memory(NamedTuple):
    """Bytes that this process may use in all, and that are free for it now; 0 where nobody says."""

    total: int
    free: int


def cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> Memory:
    """The machine's memory, or what a container is given of it."""
    if not MEMINFO.exists():
        return Memory(0, 0)
    told = dict(line.split(":") for line in MEMINFO.read_text().splitlines() if ":" in line)
    total, free = (int(told[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None or limit >= total:
        return Memory(total, free)
    return Memory(limit, min(free, limit - used))


def _number(path: Path) -> int | None:
    text = path.read_text().strip() if path.exists() else ""
    return int(text) if text.isdecimal() else None


def free_disk(folder: Path) -> int:
    """Bytes that are free where a folder is, or will be."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def cpu() -> str:
    """The CPU's name."""
    for line in CPU.read_text().splitlines() if CPU.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def machine() -> dict[str, str | int | float | None]:
    """What tells one machine from another, as far as times and digits go; names no host."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu(),
        "cores": cores(),
        "memory_gib": round(memory().total / GIB, 1),
        "gpu": gpu,
        "dtype": settled_dtype(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Python's, and those of the packages that decide what comes out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
