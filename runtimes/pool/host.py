"""What this machine is: cores, instruction sets, memory, and the devices that each installed runtime reports.

`python -m enginehouse.runtimes.pool.host RUNTIME` prints the devices of one runtime as JSON: asked in a process of its
own, because the server never imports an engine and an engine that crashes at import must cost no more than a sentence.
"""

import asyncio
import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import msgspec

from enginehouse.optimize.memory import free_memory as free_memory
from enginehouse.runtimes.contract import Device, Local

# Those that engines have kernels of their own for; the name in /proc/cpuinfo or of the sysctl -> ours.
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx_vnni": "VNNI",
    "avx512_bf16": "BF16",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "neon": "NEON",
    "sve": "SVE",
    "hw.optional.arm.FEAT_I8MM": "I8MM",
}
ASK_SECONDS = 60


class Host(msgspec.Struct, frozen=True):
    system: str  # "Linux", "Darwin", "Windows"
    release: str  # of the kernel, which drivers come with
    machine: str  # "x86_64", "arm64"
    processor: str
    cores: int  # that may be used
    instructions: tuple[str, ...]
    memory_bytes: int  # that may be used, 0 where the host does not say
    devices: dict[str, tuple[Device, ...]]  # by runtime; none for one that is not installed
    versions: dict[str, str]  # of every package that changes what a runtime does

    @property
    def fingerprint(self) -> str:
        """Changes when hardware, drivers or runtime versions do: a measurement is good for one fingerprint."""
        return hashlib.blake2b(msgspec.json.encode(self, order="deterministic"), digest_size=8).hexdigest()

    @property
    def kind(self) -> str:
        """What the prior is kept by: "apple", "nvidia", "intel", "arm" or "other"."""
        if self.system == "Darwin" and self.machine == "arm64":
            return "apple"
        reported = " ".join(
            f"{d.name} {d.description}" for ds in self.devices.values() for d in ds if not d.unavailable
        )
        if "CUDA" in reported or "NVIDIA" in reported:
            return "nvidia"
        if self.machine in ("aarch64", "arm64"):
            return "arm"
        return "intel" if "Intel" in self.processor or "Intel" in reported else "other"


async def discover(runtimes: dict[str, Local]) -> Host:
    """Asks every installed runtime for its devices, all at once."""
    installed = [runtime for runtime in runtimes.values() if runtime.unavailable() is None]
    devices = await asyncio.gather(*(asyncio.to_thread(ask, runtime) for runtime in installed))
    versions = {name: version(name) for runtime in installed for name in runtime.distributions}
    return Host(
        platform.system(),
        platform.release(),
        platform.machine(),
        processor(),
        cores(),
        instructions(),
        total_memory(),
        {runtime.name: found for runtime, found in zip(installed, devices, strict=True)},
        versions,
    )


def ask(runtime: Local) -> tuple[Device, ...]:
    """The devices of a runtime, or one that says why there is none."""
    try:
        child = subprocess.run(
            [sys.executable, "-P", "-m", "enginehouse.runtimes.pool.host", runtime.name],
            env={**os.environ, **runtime.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ASK_SECONDS,
            check=True,
        )
        return msgspec.json.decode(child.stdout.splitlines()[-1], type=tuple[Device, ...])
    except subprocess.TimeoutExpired:
        reason = f"it did not say within {ASK_SECONDS} s which devices it has"
    except subprocess.CalledProcessError as error:
        last = error.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it gave no reason"]
        reason = f"asking for its devices failed: {last[0]}"
    except (msgspec.DecodeError, IndexError):
        reason = "asking for its devices gave no answer"
    return (Device("none", "cpu", unavailable=reason),)


def main() -> None:
    from enginehouse.runtimes.engines import runtimes

    found = runtimes()[sys.argv[1]].devices()
    print(msgspec.json.encode(found).decode())


def version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def processor() -> str:
    for line in cpuinfo():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return sysctl("machdep.cpu.brand_string") or platform.processor()


def instructions() -> tuple[str, ...]:
    line = next((line for line in cpuinfo() if line.startswith(("flags", "Features"))), "")
    flags = set(line.partition(":")[2].split())
    flags |= {name for name in INSTRUCTIONS if name.startswith("hw.") and sysctl(name) == "1"}
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        flags.add("neon")
    return tuple(sorted({INSTRUCTIONS[flag] for flag in flags & INSTRUCTIONS.keys()}))


def cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def sysctl(name: str) -> str:
    """A value of macOS's, "" elsewhere."""
    if platform.system() != "Darwin":
        return ""
    return subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False).stdout.strip()


def cores() -> int:
    """Processors this process may use: affinity, and a container's CPU quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(allowed, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return allowed


def total_memory() -> int:
    """Bytes this process may use in all: the machine's, or a container's limit."""
    import psutil

    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no container, or "max"
        return total


if __name__ == "__main__":
    main()
