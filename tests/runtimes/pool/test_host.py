"""What the server says of the machine it runs on."""

import asyncio
import os

import msgspec
import psutil

from enginehouse.runtimes.contract import Device, Local
from enginehouse.runtimes.engines import runtimes
from enginehouse.runtimes.pool import host


def test_every_installed_runtime_reports_a_device_and_the_processor_is_named() -> None:
    found = asyncio.run(host.discover(runtimes()))
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 0 < found.memory_bytes <= psutil.virtual_memory().total
    assert found.machine
    for name, runtime in runtimes().items():
        if runtime.unavailable() is None:
            assert any(device.unavailable is None for device in found.devices[name]), name
        else:
            assert name not in found.devices
    assert all(version for version in found.versions.values())


def test_the_fingerprint_changes_with_versions_drivers_and_hardware_and_with_nothing_else() -> None:
    found = asyncio.run(host.discover({"echo": runtimes()["echo"]}))
    again = asyncio.run(host.discover({"echo": runtimes()["echo"]}))
    assert found.fingerprint == again.fingerprint
    changes = {"versions": {"openvino": "9"}, "release": "9.9", "cores": 99, "instructions": ("AMX",), "devices": {}}
    changed = {msgspec.structs.replace(found, **{key: value}).fingerprint for key, value in changes.items()}
    assert len(changed | {found.fingerprint}) == len(changes) + 1


def test_a_runtime_that_breaks_when_asked_for_its_devices_costs_a_sentence() -> None:
    missing: Local = msgspec.structs.replace(runtimes()["echo"], name="nonesuch")
    (device,) = host.ask(missing)
    assert device.unavailable and "asking for its devices failed" in device.unavailable


def test_the_kind_of_host_is_told_by_what_it_reports() -> None:
    base = host.Host("Linux", "6", "x86_64", "AMD EPYC", 2, (), 1 << 34, {}, {})
    kinds = {
        "other": base,
        "intel": msgspec.structs.replace(base, processor="Intel(R) Core(TM) Ultra 7"),
        "arm": msgspec.structs.replace(base, machine="aarch64", processor="Neoverse-N1"),
        "apple": msgspec.structs.replace(base, system="Darwin", machine="arm64"),
        "nvidia": msgspec.structs.replace(base, devices={"llamacpp": (Device("CUDA0", "gpu"),)}),
    }
    assert {name: machine.kind for name, machine in kinds.items()} == {name: name for name in kinds}
