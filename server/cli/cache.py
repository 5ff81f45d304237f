"""`enginehouse models` and `enginehouse prune`: what is kept in the cache, for which models, and how to have less."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from enginehouse.config.load import BadConfig
from enginehouse.config.schema import Config, Model, bytes_of
from enginehouse.optimize.artifact import Quality
from enginehouse.optimize.store import FOR_BUILDS, FOR_MODELS, CacheEntry, Store

BUDGET = re.compile(r"\d+(\.\d+)?(MiB|GiB)")


def models(config: Config, as_json: bool, verify: bool) -> int:
    """Prints the models and every artifact. 1 when `verify` finds one that is not as it was built, else 0."""
    store = Store(Path(config.cache_dir).expanduser())
    entries = sorted(store.entries(), key=lambda entry: -entry.used)
    artifacts = [describe(config, entry) for entry in entries if entry.kind == "artifact"]
    broken = {entry.name: store.verify(entry.name) for entry in entries if entry.kind == "artifact"} if verify else {}
    read = [entry for entry in entries if entry.kind == "kv"]
    made = [entry for entry in entries if entry.kind in (*FOR_BUILDS, *FOR_MODELS)]
    total, others, kv = (sum(entry.bytes for entry in some) for some in (entries, beside_artifacts(entries), read))
    if as_json:
        if verify:
            artifacts = [row | {"broken": broken[row["key"]]} for row in artifacts]
        shown = {"models": [list_model(config, name, artifacts) for name in config.models], "artifacts": artifacts}
        shown["intermediate"] = [
            {"name": entry.name, "bytes": entry.bytes, "last_used": int(entry.used), "in_use": entry.in_use}
            for entry in made
        ]
        print(json.dumps(shown | {"total_bytes": total, "kv_bytes": kv, "cache": str(store.cache)}, indent=2))
    else:
        show(config, artifacts)
        for entry in made:
            print(f"{entry.name}: {gib(entry.bytes)}, made on the way, last used {when(entry.used)}")
        print(f"{gib(total)} in '{store.cache}', of it {gib(others)} beside the artifacts, of that {gib(kv)} prompts")
        for reason in filter(None, broken.values()):
            print(f"broken: {reason}")
        if verify and not any(broken.values()):
            print(f"all {len(broken)} artifacts are as they were built")
    return 1 if any(broken.values()) else 0


def prune(config: Config, budget: str, dry_run: bool) -> None:
    """Removes what was used least recently, and prints it and what is left."""
    if not BUDGET.fullmatch(budget):
        raise BadConfig(f"--budget: '{budget}' is no size; give one such as 20GiB or 500MiB")
    limit, store = bytes_of(budget, 0), Store(Path(config.cache_dir).expanduser())
    removed = []
    for entry in store.prune(limit, dry_run):
        removed.append(entry)
        print(
            f"{'would remove' if dry_run else 'removed'} {entry.name}: {gib(entry.bytes)}, last used {when(entry.used)}"
        )
    left = [entry for entry in store.entries() if not dry_run or entry not in removed]
    total, used = sum(entry.bytes for entry in left), sum(entry.bytes for entry in left if entry.in_use)
    print(
        f"{gib(sum(entry.bytes for entry in removed))} in {len(removed)} removed; {gib(total)} left, {gib(used)} in use"
    )
    if total > limit:
        print(f"that is more than {budget}: what is in use stays; stop what uses it, then prune again")


def describe(config: Config, entry: CacheEntry) -> dict[str, Any]:
    """An artifact as `--json` shows it."""
    manifest = entry.manifest
    names = [name for name, model in config.models.items() if manifest and source_id(model) == manifest.source.id]
    return {
        "key": entry.name,
        "models": names,
        "source": manifest and manifest.source.id,
        "format": manifest and manifest.recipe.format,
        "precision": manifest and manifest.recipe.precision,
        "bytes": entry.bytes,
        "source_bytes": manifest and manifest.source.bytes,
        "created": manifest and manifest.created,
        "last_used": int(entry.used),
        "in_use": entry.in_use,
        "quality": manifest and msgspec.to_builtins(manifest.quality),
    }


def source_id(model: Model) -> str:
    """As sources name themselves."""
    return f"{model.origin} + {model.adapter}" if model.adapter else model.origin


def list_model(config: Config, name: str, artifacts: list[dict[str, Any]]) -> dict[str, Any]:
    model = config.models[name]
    keys = [row["key"] for row in artifacts if name in row["models"]]
    listed = {"name": name, "source": model.origin, "runtime": model.runtime, "precision": model.precision}
    return listed | {"aliases": list(model.aliases), "artifacts": keys}


def show(config: Config, artifacts: list[dict[str, Any]]) -> None:
    console = Console()
    table = Table("model", "source", "runtime", "precision", "aliases", "artifacts", box=SIMPLE)
    for name, model in config.models.items():
        count = sum(name in row["models"] for row in artifacts)
        table.add_row(name, model.source, model.runtime, model.precision, ", ".join(model.aliases), str(count))
    console.print(table)
    if not artifacts:
        return
    table = Table(*COLUMNS, box=SIMPLE, padding=(0, 1, 0, 0))
    for row in artifacts:
        table.add_row(
            ", ".join(row["models"]) or f"none ({row['source'] or 'no manifest that can be read'})",
            row["format"],
            row["precision"],
            gib(row["bytes"]),
            f"{100 * row['bytes'] / row['source_bytes']:.0f} %" if row["source_bytes"] else "",
            when(datetime.fromisoformat(row["created"]).timestamp()) if row["created"] else "",
            when(row["last_used"]),
            "yes" if row["in_use"] else "no",
            figures(msgspec.convert(row["quality"], Quality)) if row["quality"] else "",
        )
    console.print(table)


COLUMNS = ("models", "format", "precision", "size", "of source", "created", "last used", "in use", "quality")


def figures(quality: Quality) -> str:
    return f"KL {quality.divergence:.3f}, top-1 {quality.agreement:.1%}, perplexity x{quality.perplexity:.3f}"


def beside_artifacts(entries: list[CacheEntry]) -> list[CacheEntry]:
    return [entry for entry in entries if entry.kind != "artifact"]


def gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
