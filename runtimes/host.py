"""What this machine is."""

import os
from pathlib import Path


def cores() -> int:
    """Processors this process may use: affinity, and a container's CPU quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return allowed


def free_memory() -> int:
    """Bytes this process may still take: what the kernel can give, within a container's limit; 0 if it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return 0
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        return max(0, min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text())))
    except (OSError, ValueError):  # no container, or "max"
        return free
