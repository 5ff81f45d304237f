"""docs/examples: each can be used as it stands, and the schema for editors agrees with the loader."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from enginehouse.config import schema
from enginehouse.config.json_schema import comments, json_schema
from enginehouse.runtimes.engines import runtimes
from tests.serving import COMMAND

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.yaml"))
SCHEMA = json_schema({name: runtime.options for name, runtime in runtimes().items()})
POCKET = {"models": {"pocket": {"source": "builtin:pocket"}}}


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, "config", "check", *arguments]
    return subprocess.run(command, env=os.environ | {"CLUSTER_KEY": "k"}, capture_output=True, text=True)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_can_be_used_and_explains_itself(file: Path) -> None:
    checked = check(str(file))
    assert checked.returncode == 0, checked.stderr
    jsonschema.validate(yaml.safe_load(file.read_text()), SCHEMA)
    assert file.read_text().count("#") > 5
    assert f"examples/{file.name}" in (ROOT / "docs" / "configuration.md").read_text()


def test_there_is_one_for_each_kind_of_house() -> None:
    assert len(EXAMPLES) == 6


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"models": {}},
        POCKET | {"sever": {}},
        POCKET | {"memory_budget": "lots"},
        {"models": {"pocket": {"source": "builtin:pocket", "runtime": "mxl"}}},
        {"models": {"pocket": {"source": "builtin:pocket", "options": {"llamacpp": {"threads": 1}}}}},
        {"models": {"pocket": {"source": "builtin:pocket", "options": {"llama": {}}}}},
        {"models": {"pocket": {"source": "builtin:pocket", "slots": 0}}},
    ],
)
def test_what_the_loader_refuses_the_schema_does(wrong: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "enginehouse.yaml"
    file.write_text(json.dumps(wrong))
    checked = check(str(file))
    assert checked.returncode == 1
    assert checked.stderr.startswith("enginehouse: ")
    assert len(checked.stderr.splitlines()) == 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_the_schema_is_printed_and_describes_fields_as_the_code_does() -> None:
    printed = subprocess.run([*COMMAND, "config", "schema"], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == json.loads(json.dumps(SCHEMA))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    fields = {(struct.__name__, field.name) for struct in (schema.Server, schema.Model) for field in fields_of(struct)}
    described = comments().keys() & fields
    assert {("Model", "overflow"), ("Server", "send_timeout"), ("Model", "slots")} <= described
    assert "when all" in comments()["Model", "overflow"] or "also when" in comments()["Model", "overflow"]


def fields_of(struct: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    return msgspec.structs.fields(struct)
