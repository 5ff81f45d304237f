"""`enginehouse doctor`: what this machine has, what is missing and how to get it, and whether it could serve."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from enginehouse.config.load import BadConfig
from enginehouse.config.schema import Config, bytes_of
from enginehouse.optimize.sources import on_disk
from enginehouse.optimize.toolchains import toolchains
from enginehouse.runtimes.contract import Local
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.pool import host
from enginehouse.runtimes.pool.host import Host

FEW_BYTES = 2 << 30  # of free disk, below which a build of a common model fails


def run(configured: Callable[[], Config]) -> int:
    """Prints the findings, among them what is wrong with the config that the argument reads. 0 when models of it could
    be served, else 1."""
    console, found = Console(), runtimes()
    machine = asyncio.run(host.discover(found))
    console.print(hardware(machine), highlight=False)
    console.print(engines(found, machine))
    troubles = []
    try:
        config = configured()
        troubles += cache(config)
        budget = bytes_of(config.memory_budget, machine.memory_bytes)
        if there := on_disk.find(Path.home()):
            print(f"{len(there)} models of other programs are on this disk; enginehouse pull --local shows them")
        print(f"config: {len(config.models)} models; memory budget {budget >> 20} MiB")
    except BadConfig as error:
        troubles.append(str(error))
    if not any(usable(runtime, machine) for runtime in found.values() if runtime.name != "echo"):
        troubles.append("no runtime can serve here; pip install 'enginehouse[llamacpp]'")
    for trouble in troubles:
        print(f"trouble: {trouble}")
    print("this machine cannot serve" if troubles else "this machine can serve")
    return 1 if troubles else 0


def hardware(machine: Host) -> str:
    return (
        f"{machine.system} {machine.release} {machine.machine}, {machine.processor}, {machine.cores} cores "
        f"({', '.join(machine.instructions) or 'no vector instructions'}), {machine.memory_bytes / 2**30:.1f} GiB; "
        f"kind '{machine.kind}', fingerprint {machine.fingerprint}"
    )


def engines(found: dict[str, Local], machine: Host) -> Table:
    table = Table("runtime", "version", "devices", "makes its models from checkpoints", box=None)
    for name, runtime in sorted(found.items()):
        toolchain = toolchains().get(runtime.format)
        makes = (toolchain.unavailable() or "yes") if toolchain else "no"
        versions = ", ".join(f"{package} {machine.versions[package]}" for package in runtime.distributions)
        if reason := runtime.unavailable():
            table.add_row(name, "", reason, "")
        else:
            devices = [device.unavailable or f"{device.name} {device.description}" for device in machine.devices[name]]
            table.add_row(name, versions, "; ".join(devices), makes)
    return table


def usable(runtime: Local, machine: Host) -> bool:
    return any(device.unavailable is None for device in machine.devices.get(runtime.name, ()))


def cache(config: Config) -> list[str]:
    """What is wrong with the folder for artifacts."""
    folder = Path(config.cache_dir).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".doctor"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return [f"the cache '{folder}' cannot be written: {error.strerror}; set cache_dir to a folder that can"]
    free = shutil.disk_usage(folder).free
    print(f"cache: {folder}, {free / 2**30:.1f} GiB free")
    if free < FEW_BYTES:
        return [f"only {free >> 20} MiB are free on the disk of '{folder}'; free some, or set cache_dir elsewhere"]
    return []
