"""`enginehouse bench` and `enginehouse explain`: times a model on each runtime, and shows what was decided and why."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from enginehouse.config.load import BadConfig
from enginehouse.config.schema import Config
from enginehouse.optimize.artifact import Quality
from enginehouse.runtimes.contract import Chat, Prompt, Text
from enginehouse.runtimes.errors import EngineFailed, Unavailable, UnknownModel
from enginehouse.runtimes.pool.explanation import Explanation
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.runtimes.pool.routing import Figures, Ranked
from enginehouse.server.cli.plot import Point, draw

T = TypeVar("T")
SHOW_SECONDS = 0.2


Names = Sequence[str] | None


def run(
    config: Config,
    model: str,
    only: Names,
    precisions: Names,
    prompts: str | None,
    as_json: bool,
    drawing: str | None = None,
) -> None:
    """Times every candidate in a worker of its own, one after the other, and prints them with those that cannot.
    `drawing`: an SVG file to be written."""
    given = read_prompts(Path(prompts)) if prompts else ()
    asyncio.run(_bench(config, model, only, precisions, given, as_json, Path(drawing) if drawing else None))


def read_prompts(file: Path) -> list[Prompt]:
    """A line is a body of /v1/chat/completions, of which messages and tools are taken, or a text. Raises BadConfig."""
    prompts = list[Prompt]()
    try:
        for line in filter(str.strip, file.read_text(encoding="utf-8").splitlines()):
            found = msgspec.json.decode(line, type=str | Asked)
            prompts.append(Text(found) if isinstance(found, str) else Chat(found.messages, found.tools))
    except (OSError, ValueError) as error:
        raise BadConfig(f"'{file}': {error}") from error
    if not prompts:
        raise BadConfig(f"'{file}' has no prompts; give one JSON object with 'messages', or a text, on each line")
    return prompts


class Asked(msgspec.Struct, frozen=True):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


def explain(config: Config, model: str, as_json: bool) -> None:
    async def ask() -> Explanation:
        async with pool_of(config) as pool:
            return await pool.explain(model)

    explained = asyncio.run(ask())
    if as_json:
        print(to_json(explained))
    else:
        show(explained)


async def _bench(
    config: Config,
    model: str,
    only: Names,
    precisions: Names,
    prompts: Sequence[Prompt],
    as_json: bool,
    drawing: Path | None,
) -> None:
    errors: dict[str, str] = {}
    explained: list[Explanation] = []
    costs: dict[str, dict[str, float]] = {}  # of the best candidate's settings
    for one in [pinned(config, model, precision=precision) for precision in precisions or ()] or [config]:
        async with pool_of(one) as pool:
            name = pool.resolve(model)
            decision = await pool.decision(name)
            ranked = [r for r in decision.ranked if not only or r.candidate.runtime in only]
            for runtime in set(only or ()) - {r.candidate.runtime for r in ranked}:
                reasons = [r.reason for r in decision.rejected if r.runtime == runtime] or ["no such runtime"]
                errors[runtime] = reasons[0]
            with progress(as_json) as bar:
                for candidate in ranked:
                    await timed(pool, name, candidate, pool.measure(name, candidate, prompts), bar, errors)
                unmeasured = (await pool.decision(name)).unmeasured
                if unmeasured and (not only or unmeasured.candidate.runtime in only):
                    await timed(pool, name, unmeasured, pool.measure(name, unmeasured, prompts), bar, errors)
                best = next(iter((await pool.decision(name)).ranked), None)
                if best and best.figures and (not only or best.candidate.runtime in only):
                    found = await timed(pool, name, best, pool.tune(name, best, prompts), bar, errors)
                    if found:
                        objective = one.routing.objective
                        by_setting = {setting or "as usual": f.cost(objective) for setting, f in found.items()}
                        costs[best.candidate.key] = by_setting
            explained.append(await pool.explain(name))
    if drawing:
        plot_to(drawing, explained)
    if as_json:
        print(to_json({"explained": explained, "settings": costs, "errors": errors}))
        return
    for shown in explained:
        show(shown)
    for key, by_setting in costs.items():
        print(f"{key}, cost by setting: {', '.join(f'{name} {cost:.2f}' for name, cost in by_setting.items())}")
    for what, reason in errors.items():
        print(f"{what}: {reason}")


def plot_to(file: Path, explained: Sequence[Explanation]) -> None:
    points = {
        row.key: Point(
            row.key, row.figures.decode, row.quality.divergence if row.quality else 0.0, row.figures.memory_bytes
        )
        for one in explained
        for row in one.candidates
        if row.figures
    }
    if not points:
        raise BadConfig(f"'{file}' is not drawn: nothing could be measured")
    try:
        file.write_text(draw(f"{explained[0].model} on {explained[0].host.processor}", list(points.values())))
    except OSError as error:
        raise BadConfig(f"'{file}' cannot be written: {error.strerror}") from error


async def timed(
    pool: Pool,
    name: str,
    ranked: Ranked,
    work: Coroutine[Any, Any, T],
    bar: Progress,
    errors: dict[str, str],
) -> T | None:
    """What comes of it; None where it failed."""
    row = bar.add_task(ranked.candidate.key, total=1.0, stage="start")
    measuring = asyncio.create_task(work)
    while not measuring.done():
        now = pool.progress(name)
        bar.update(row, completed=now.percent / 100, stage=now.stage)
        await asyncio.wait([measuring], timeout=SHOW_SECONDS)
    try:
        found = await measuring
        bar.update(row, completed=1.0, stage="done")
        return found
    except (Unavailable, EngineFailed) as error:
        errors[ranked.candidate.key] = str(error)
        bar.update(row, stage="failed")
        return None


@contextlib.asynccontextmanager
async def pool_of(config: Config) -> AsyncIterator[Pool]:
    """A pool that measures only what it is told to."""
    routing = msgspec.structs.replace(config.routing, measure="on-demand")
    pool = Pool(msgspec.structs.replace(config, routing=routing))
    try:
        yield pool
    finally:
        await pool.drain()


def pinned(config: Config, model: str, **fields: str) -> Config:
    """The config with some of a model's fields set otherwise."""
    name = next((name for name, one in config.models.items() if model in (name, *one.aliases)), None)
    if name is None:
        raise UnknownModel(f"there is no model '{model}'; have: {', '.join(config.models)}")
    changed = msgspec.structs.replace(config.models[name], **fields)
    return msgspec.structs.replace(config, models={**config.models, name: changed})


def progress(quiet: bool) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[stage]}"))
    return Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), disable=quiet)


def to_json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def show(explained: Explanation) -> None:
    host = explained.host
    console = Console()
    console.print(
        f"[bold]{explained.model}[/bold] from {explained.source}, for {explained.objective}, on "
        f"{host.processor}, {host.cores} cores ({', '.join(host.instructions) or 'no vector instructions'}), "
        f"kind '{host.kind}'",
        highlight=False,
    )
    table = Table(*COLUMNS, box=SIMPLE, padding=(0, 1, 0, 0))
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for row in explained.candidates:
        speed = numbers(row.figures, row.cost) if row.figures and row.cost is not None else [""] * len(SPEED)
        table.add_row(row.key, *speed, *(closeness(row.quality) if row.quality else []))
    console.print(table)
    for row in explained.candidates:
        print(f"{row.key}: {row.reason}")
    for rejected in explained.rejected:
        print(f"not {rejected.runtime}: {rejected.reason}")


# Speeds are in tokens per second; "together" is all slots at once. The last three: see Quality in optimize/artifact.py.
SPEED = ("prefill", "alone", "together", "first s", "load s", "MiB", "cost")
COLUMNS = ("candidate", *SPEED, "KL", "top-1", "ppl")


def numbers(figures: Figures, cost: float) -> list[str]:
    return [
        f"{figures.prefill:.0f}",
        f"{figures.decode:.1f}",
        f"{figures.decode_crowd:.1f}",
        f"{figures.first_token_seconds:.2f}",
        f"{figures.load_seconds:.1f}",
        f"{figures.memory_bytes >> 20}",
        f"{cost:.2f}",
    ]


def closeness(quality: Quality) -> list[str]:
    return [f"{quality.divergence:.4f}", f"{quality.agreement:.1%}", f"{quality.perplexity:.3f}"]
