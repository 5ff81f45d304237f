"""What memory may still be taken here."""

from pathlib import Path

CONTAINER = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Bytes this process may still take: what the kernel can give, within a container's limit."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit, used = (int((CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        lines = (line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or "max"
        return free
    # Files that were read or written count as used, though they make room: a download would fill the container.
    files = sum(int(bytes) for name, bytes in lines if name in ("active_file", "inactive_file"))
    return max(0, min(free, limit - used + files))
