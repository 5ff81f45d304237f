"""Finds and reads the config file; every error names the file, the place and what would be right."""

import difflib
import os
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from enginehouse.config.schema import Config, Model, Server

BUILTIN = Path(__file__).with_name("default.yaml")
UNKNOWN = re.compile(r"Object contains unknown field `(.+?)`(?: - at `\$\.?(.*)`)?")
WRONG = re.compile(r"(.+?)(?: - at `\$\.?(.*)`)?$")
# What a text that matches no pattern should have been, by its key; every other one is a duration.
PATTERNS = {
    "memory_budget": "a size such as 80%, 12GiB or 900MiB",
    "_keys": "a key of printable ASCII without blanks",
    "base_urls": "a URL such as http://gpu-box:8000/v1, without user, query and fragment",
    "otlp_": "a URL such as http://127.0.0.1:4318/v1/traces, without user, query and fragment",
    "cors_origins": "an origin such as https://chat.example, without a path, or *",
}
KEY = re.compile(r"[\x21-\x7e]+")  # what a header can carry
T = TypeVar("T")


class BadConfig(Exception):
    """The config cannot be used; the message says where and what would be right."""


def load(path: str | None, environ: Mapping[str, str] = os.environ) -> Config:
    """The config of --config FILE, else $ENGINEHOUSE_CONFIG, else ./enginehouse.yaml, else the built-in one."""
    file = find(path, environ)
    config = read(file)
    check_keys(config, environ, f"config '{file}'")
    if file != BUILTIN:
        config = with_paths(config, file.absolute().parent)
    return with_environment(config, environ)


def find(path: str | None, environ: Mapping[str, str]) -> Path:
    if named := path or environ.get("ENGINEHOUSE_CONFIG"):
        return Path(named)
    local = Path("enginehouse.yaml")
    return local if local.exists() else BUILTIN


def read(file: Path) -> Config:
    where = f"config '{file}'"
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), Loader=StrictLoader)
    except OSError as error:
        raise BadConfig(f"{where}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadConfig(f"{where}: is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise BadConfig(f"{where}: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise BadConfig(f"{where}: is empty or not a mapping; at least 'models:' is needed")
    models = raw.pop("models", None)
    if not isinstance(models, dict) or not models:
        raise BadConfig(
            f"{where}: 'models' must name at least one model, e.g. models: {{pocket: {{source: builtin:pocket}}}}"
        )
    config = convert(raw, Config, where)
    by_name = {str(name): convert(model, Model, f"{where}: model '{name}'") for name, model in models.items()}
    check_names(by_name, config.server, where)
    return msgspec.structs.replace(config, models=by_name)


class StrictLoader(yaml.SafeLoader):
    """YAML's safe loader that refuses a key given twice, where PyYAML keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def convert(raw: Any, to: type[T], where: str) -> T:
    try:
        return msgspec.convert(raw, to)
    except msgspec.ValidationError as error:
        raise BadConfig(f"{where}: {explain(str(error), to)}") from error


def explain(message: str, struct: type) -> str:
    """msgspec's message with the key up front and, for an unknown key, the nearest known one."""
    if match := UNKNOWN.match(message):
        key, parent = match[1], match[2]
        known = keys_at(struct, parent)
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"unknown key '{f'{parent}.' if parent else ''}{key}'; {hint}have: {', '.join(sorted(known))}"
    meant = next(
        (what for key, what in PATTERNS.items() if key in message), "a duration such as 30s, 10m, 2h or forever"
    )
    message = re.sub(r"`str` matching regex .*'", meant, message)
    match = WRONG.match(message)
    assert match
    return f"'{match[2]}': {match[1][0].lower()}{match[1][1:]}" if match[2] else match[1][0].lower() + match[1][1:]


def keys_at(struct: type, parent: str | None) -> list[str]:
    fields = {field.name: field.type for field in msgspec.structs.fields(struct)}
    return [field.name for field in msgspec.structs.fields(fields[parent])] if parent else list(fields)


def check_names(models: dict[str, Model], server: Server, where: str) -> None:
    owners = {name: name for name in models}
    for name, model in models.items():
        for alias in model.aliases:
            if alias in owners:
                raise BadConfig(f"{where}: model '{name}': alias '{alias}' already names model '{owners[alias]}'")
            owners[alias] = name
    for key, rules in server.keys.items():
        for model_name in rules.models:
            if model_name not in owners:
                raise BadConfig(f"{where}: 'server.keys.{key}.models': there is no model '{model_name}'")


def check_keys(config: Config, environ: Mapping[str, str], where: str) -> None:
    for name, model in config.models.items():
        variable = model.upstream.api_key_env if model.upstream else None
        if variable and not KEY.fullmatch(environ.get(variable, "")):
            what = "is no key of printable ASCII without blanks" if variable in environ else "is not set"
            raise BadConfig(
                f"{where}: model '{name}': 'upstream.api_key_env': environment variable '{variable}' {what}"
            )


def with_paths(config: Config, folder: Path) -> Config:
    """Relative paths are relative to the config file, wherever the server is started."""
    models = {
        name: msgspec.structs.replace(
            model,
            source=model.source and located(model.source, folder),
            adapter=model.adapter and located(model.adapter, folder),
        )
        for name, model in config.models.items()
    }
    cache = folder / Path(config.cache_dir).expanduser()
    return msgspec.structs.replace(config, models=models, cache_dir=str(cache))


def located(source: str, folder: Path) -> str:
    """The path, where `source` is one: it says so, or something lies there. Else a hub id, or a name of ours."""
    path = folder / Path(source).expanduser()
    is_path = source.startswith((".", "~", "/")) or os.path.lexists(path)
    return os.path.normpath(path) if is_path and not source.startswith("builtin:") else source


def with_environment(config: Config, environ: Mapping[str, str]) -> Config:
    """ENGINEHOUSE_HOST, _PORT, _API_KEYS (comma-separated), _ALLOW_OPEN and _CACHE_DIR win over the file."""
    over: dict[str, Any] = {}
    for key in ("host", "port", "api_keys", "allow_open"):
        name = f"ENGINEHOUSE_{key.upper()}"
        if name in environ:
            value = environ[name]
            over[key] = [part.strip() for part in value.split(",")] if key == "api_keys" else value
    if over:
        merged = msgspec.structs.asdict(config.server) | over
        try:
            config = msgspec.structs.replace(config, server=msgspec.convert(merged, Server, strict=False))
        except msgspec.ValidationError as error:
            raise BadConfig(f"environment ENGINEHOUSE_*: {explain(str(error), Server)}") from error
    if cache := environ.get("ENGINEHOUSE_CACHE_DIR"):
        config = msgspec.structs.replace(config, cache_dir=cache)
    return config
