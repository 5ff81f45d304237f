"""`enginehouse config check` and `config schema`: whether a config can be used, and what one may hold."""

import json
from collections.abc import Callable

from enginehouse.config.json_schema import json_schema
from enginehouse.config.schema import Config
from enginehouse.runtimes.engines import runtimes


def check(file: str, configured: Callable[[], Config]) -> None:
    """Raises BadConfig with what is wrong."""
    config = configured()
    names = ", ".join(config.models)
    print(f"'{file}' can be used; {'its model' if len(config.models) == 1 else 'its models'}: {names}")


def schema() -> None:
    options = {name: runtime.options for name, runtime in sorted(runtimes().items())}
    print(json.dumps(json_schema(options), indent=2))
