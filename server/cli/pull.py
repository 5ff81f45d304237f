"""`enginehouse pull`: fetches a model before it is asked for, or shows those that other programs have on this disk."""

import json
import sys
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from enginehouse.config.load import BadConfig
from enginehouse.config.schema import Config, bytes_of
from enginehouse.optimize.sources import hub, on_disk
from enginehouse.optimize.sources.layout import DEFAULT_GGUF, gguf_models, precision_in
from enginehouse.optimize.sources.resolve import is_hub_id, resolve
from enginehouse.runtimes.pool import host
from enginehouse.runtimes.pool.loader import LOADED_BYTES, OVERHEAD_BYTES
from enginehouse.server.cli.cache import gib

LINKS = "links"  # below cache_dir: names for what other programs keep without one
LINE_PERCENT = 10  # between two lines where there is no terminal


def pull(config: Config, name: str, file: str | None, revision: str | None) -> None:
    """`name`: a model of the config, or a hub id. Prints where it lies, and what a config says for it."""
    model = next((one for key, one in config.models.items() if name in (key, *one.aliases)), None)
    if model and not model.source:
        raise BadConfig(f"model '{name}' is served by an upstream: there is nothing to fetch")
    source, precision = (model.source or "", model.precision) if model else (name, "auto")
    if not is_hub_id(source):
        print(f"'{name}' is here: {resolve(source, precision).path}")
        return
    revision = revision or (model.revision if model else None)
    if not model or file:
        source = (
            f"{source}/{file}"
            if file
            else chosen(source, revision, bytes_of(config.memory_budget, host.total_memory()))
        )
    with Shown(source) as shown:
        path, offline = hub.fetch(source, revision, precision, shown.report)
    print(f"'{source}' is {'cached, though the hub is out of reach' if offline else 'here'}: {path}")
    if model:
        print(f"enginehouse chat {name}")
    else:
        short = Path(source).name.removesuffix(".gguf").lower()
        pin = f"\n    revision: {revision}" if revision else ""
        print(f"to serve it, in the config:\nmodels:\n  {short}:\n    source: {source}{pin}")


def chosen(source: str, revision: str | None, budget: int) -> str:
    """Of a repository's .gguf files the one that is usually taken, else the largest that fits; all of them are shown.
    Anything else is taken as it is."""
    if len(source.split("/")) > 2:
        return source
    sizes = hub.sizes(source, revision)
    files = gguf_models(list(sizes))
    models = {name: sum(sizes[part] for part in parts) for name, parts in files.items()}
    if len(models) < 2:
        return source
    fitting = {name: size for name, size in models.items() if LOADED_BYTES * size + OVERHEAD_BYTES <= budget}
    usual = [name for name in fitting if precision_in(name) == DEFAULT_GGUF]
    best = usual[0] if usual else max(fitting, key=fitting.__getitem__, default=None)
    table = Table("", "file", "precision", "size", f"in {gib(budget)} of memory", box=None)
    for name, size in sorted(models.items(), key=lambda pair: pair[1]):
        fits = "fits" if name in fitting else "too large"
        table.add_row("→" if name == best else "", name, precision_in(name) or "", gib(size), fits)
    Console().print(table, highlight=False)
    if best is None:
        raise BadConfig(f"no file of '{source}' fits memory_budget; raise it, or take one all the same with --file")
    print(f"fetching '{best}'; another with --file")
    return f"{source}/{files[best][0]}"


class Shown:
    """A bar on a terminal, lines elsewhere; both on stderr."""

    def __init__(self, name: str) -> None:
        console = Console(stderr=True)
        self._terminal, self._name, self._last = console.is_terminal, name, -LINE_PERCENT
        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console, disable=not self._terminal)

    def __enter__(self) -> "Shown":
        self._bar.start()
        self._row = self._bar.add_task(self._name, total=1.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def report(self, _: str, fraction: float) -> None:
        self._bar.update(self._row, completed=fraction)
        percent = int(100 * fraction)
        if not self._terminal and (percent >= self._last + LINE_PERCENT or self._last < percent == 100):
            self._last = percent
            print(f"{self._name}: {percent} %", file=sys.stderr)


def local(config: Config, as_json: bool) -> None:
    """Prints what is on this disk, and what a config says for each; what has no name of its own gets a link."""
    links = Path(config.cache_dir).expanduser() / LINKS
    found = [
        one if one.source else msgspec.structs.replace(one, source=str(on_disk.link(one, links)))
        for one in on_disk.find(Path.home())
    ]
    if as_json:
        print(json.dumps(msgspec.to_builtins(found), indent=2))
        return
    if not found:
        print("no models of the hub's cache, LM Studio or Ollama are on this disk")
    for one in found:
        print(f"{one.owner}: {one.name}, {one.kind}, {gib(one.bytes)}\n    source: {one.source}")
