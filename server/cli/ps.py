"""`enginehouse ps` and `enginehouse stop`: what a server has loaded, and how that is ended."""

import json
from typing import Any

from rich.console import Console
from rich.table import Table

from enginehouse.config.schema import Config
from enginehouse.server.cli.client import address, connected, models, told


def ps(config: Config, as_json: bool) -> None:
    with connected(address(config)) as client:
        listed = [one for one in models(client) if one["status"]["state"] != "unloaded"]
    if as_json:
        print(json.dumps(listed, indent=2))
        return
    if not listed:
        print("nothing is loaded")
        return
    table = Table("model", "served by", "memory", "context", "requests", box=None)
    for one in listed:
        status = one["status"]
        table.add_row(one["id"], *cells(status), str(status["requests"]))
    Console().print(table)


def cells(status: dict[str, Any]) -> tuple[str, str, str]:
    if status["state"] == "loading":
        return f"{status['stage']} {status['percent']} %", "", ""
    served = f"{status['runtime']}/{status['device']}/{status['precision']}"
    if better := status.get("better"):
        served += f"; {better['stage']} of a better one {better['percent']} %"
    return served, f"{status['memory_bytes'] >> 20} MiB", str(status["context_length"])


def stop(config: Config, model: str) -> None:
    """Unloads a model as soon as nobody asks for it."""
    with connected(address(config)) as client:
        told(client.post("/api/generate", json={"model": model, "keep_alive": 0}))
    print(f"'{model}' is unloaded when its last request has ended")
