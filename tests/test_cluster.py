"""The files of docs/cluster are what the programs that read them take, and the configs in them ours."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from enginehouse.config.load import load

CLUSTER = Path(__file__).parent.parent / "docs" / "cluster"
COMPOSE: dict[str, Any] = yaml.safe_load((CLUSTER / "compose.yaml").read_text())
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text()))


def named(kind: str, name: str) -> dict[str, Any]:
    return next(one for one in OBJECTS if (one["kind"], one["metadata"]["name"]) == (kind, name))


CONFIGS = {
    "compose": COMPOSE["configs"]["enginehouse"]["content"],
    "kubernetes": named("ConfigMap", "enginehouse")["data"]["enginehouse.yaml"],
}


def test_compose_takes_the_compose_file() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*command, str(CLUSTER / "compose.yaml")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("number", range(len(OBJECTS)))
def test_kubernetes_takes_each_object(number: int) -> None:
    kubernetes_validate.validate(OBJECTS[number], kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_in_it_is_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.yaml").write_text(CONFIGS[name])
    config = load(str(tmp_path / "config.yaml"), {})
    assert config.models["qwen3"].upstream
    grace = {
        "compose": COMPOSE["services"]["enginehouse"]["stop_grace_period"],
        "kubernetes": f"{pod('Deployment', 'enginehouse')['terminationGracePeriodSeconds']}s",
    }
    assert int(grace[name].removesuffix("s")) > int(config.server.drain_timeout.removesuffix("s"))


def test_each_replica_is_asked_by_its_own_name() -> None:
    urls = yaml.safe_load(CONFIGS["kubernetes"])["models"]["qwen3"]["upstream"]["base_urls"]
    vllm = named("StatefulSet", "vllm")["spec"]
    assert urls == [f"http://vllm-{number}.{vllm['serviceName']}:8000/v1" for number in range(vllm["replicas"])]


def test_what_a_pod_mounts_and_reads_is_there() -> None:
    for kind, name in (("StatefulSet", "vllm"), ("Deployment", "enginehouse")):
        volumes = {one["name"] for one in pod(kind, name)["volumes"]}
        volumes |= {one["metadata"]["name"] for one in named(kind, name)["spec"].get("volumeClaimTemplates", [])}
        assert {one["name"] for one in pod(kind, name)["containers"][0]["volumeMounts"]} == volumes
    assert named("PersistentVolumeClaim", "enginehouse") and named("Secret", "enginehouse")


def pod(kind: str, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = named(kind, name)["spec"]["template"]["spec"]
    return spec
