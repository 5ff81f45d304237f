"""What /metrics exposes: all that the docs list, by those names and labels, and every figure moves when it should."""

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.serving import Served, free_port, serve

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `([a-z0-9_:]+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)
ECHO: dict[str, Any] = {"source": "builtin:echo"}
SECONDS = 60
# What takes minutes, or an engine that lacks a feature, to come about; tested where that is.
ELSEWHERE = {"enginehouse_continuations", "enginehouse_detours", "enginehouse_load_failures"}
Families = dict[str, Metric]


def families(served: Served, key: str = "sesame") -> Families:
    """By name without `_total`."""
    text = httpx.get(f"{served.root}/metrics", headers={"authorization": f"Bearer {key}"}).text
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(found: Families, name: str, **labels: str) -> float:
    """Of all samples with these labels together; of a histogram their count."""
    return sum(
        sample.value
        for sample in found[name].samples
        if not sample.name.endswith(("_bucket", "_sum")) and labels.items() <= sample.labels.items()
    )


def labels_of(family: Metric) -> set[str]:
    return {label for sample in family.samples for label in sample.labels}


def ask(served: Served, model: str, text: str = "hi there", key: str = "sesame", **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0} | fields
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(f"{served.root}/v1/chat/completions", json=body, headers=headers, timeout=SECONDS)


def change(served: Served, config: dict[str, Any] | str) -> None:
    file = next(served.cache.parent.glob("config-*.yaml"))
    written = file.with_suffix(".new")
    written.write_text(config if isinstance(config, str) else json.dumps(config))
    written.rename(file)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server after a bit of everything: answers here and elsewhere, deaths, refusals, evictions, changed configs."""
    folder = tmp_path_factory.mktemp("mixed")
    house, gone = {"base_urls": [], "model": "echo"}, f"http://127.0.0.1:{free_port()}/v1"
    with serve(tmp_path_factory.mktemp("elsewhere"), {"echo": ECHO}) as elsewhere:
        house["base_urls"] = [gone, f"{elsewhere.root}/v1"]
        models = {
            "echo": ECHO | {"keep_alive": "1s"},
            "slow": ECHO | {"slots": 1, "options": {"echo": {"decode_rate": 20}}},
            "pocket": {"source": "builtin:pocket", "runtime": "llamacpp", "precision": "int8"},
            "remote": {"runtime": "upstream", "upstream": house},
            "overflowing": ECHO | {"overflow": "loading", "upstream": house},
            "dies": ECHO | {"options": {"echo": {"fails_on": "DIE"}}},
        }
        keys = {
            "few": {"key": "few", "requests_per_minute": 1},
            "short": {"key": "short", "tokens_per_minute": 1},
            "narrow": {"key": "narrow", "concurrent": 1},
        }
        with serve(folder, models, api_keys=["sesame"], keys=keys) as served:
            for model in ("echo", "remote", "remote", "overflowing"):
                assert ask(served, model).status_code == 200
            for _ in range(2):  # the second finds the first one's KV, and is guessed by what it predicts
                predicted = {"type": "content", "content": "I don't know that; I am only a small demo model."}
                question = "What is the capital of Spain? And of France? And of Italy? And of Norway?"
                assert ask(served, "pocket", question, prediction=predicted).status_code == 200
            assert ask(served, "dies").status_code == 200
            assert ask(served, "dies", "DIE").status_code == 500
            assert ask(served, "dies").status_code == 200
            assert ask(served, "echo", nonsense=1).status_code == 400
            for key in ("few", "short"):
                assert [ask(served, "echo", key=key).status_code for _ in range(2)] == [200, 429]
            with ThreadPoolExecutor() as threads:
                at_once = [threads.submit(ask, served, "slow", "a" * 30, "narrow") for _ in range(2)]
                assert sorted(one.result().status_code for one in at_once) == [200, 429]
            yield served


def test_the_docs_list_every_metric_with_its_type_and_labels_and_no_other(mixed: Served) -> None:
    shown = {
        name + "_total" * (family.type == "counter"): (family.type, labels_of(family) - {"le"})
        for name, family in families(mixed).items()
    }
    page = (ROOT / "docs" / "operating.md").read_text()
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in ROW.findall(page)}
    assert sorted(listed) == sorted(shown)
    for name, (kind, labels) in shown.items():
        assert listed[name] == (kind, labels), name


def queries() -> Iterator[tuple[str, str]]:
    """Of the dashboard, with what Grafana puts in the place of its variables, and the title of their panel."""
    board = json.loads((ROOT / "docs" / "grafana.json").read_text())
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "1m")


def test_the_dashboard_asks_only_for_metrics_and_labels_that_there_are(mixed: Served) -> None:
    exposed = {sample.name: set(sample.labels) for family in families(mixed).values() for sample in family.samples}
    for title, query in queries():
        expression = promql_parser.parse(query)
        for selector, grouped in selectors(expression):
            assert selector.name in exposed, (title, selector.name)
            asked = {matcher.name for matcher in selector.matchers.matchers} | grouped
            assert asked <= exposed[selector.name], (title, query)
    board = json.loads((ROOT / "docs" / "grafana.json").read_text())
    for variable in board["templating"]["list"][1:]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
        assert label in exposed[metric]


def selectors(expression: Any, grouped: frozenset[str] = frozenset()) -> Iterator[tuple[Any, frozenset[str]]]:
    """Of a query, each with the labels that are kept of what it selects."""
    match expression:
        case promql_parser.VectorSelector():
            yield expression, grouped
        case promql_parser.MatrixSelector():
            yield expression.vector_selector, grouped
        case promql_parser.AggregateExpr():
            kept = expression.modifier.labels if expression.modifier else ()
            yield from selectors(expression.expr, grouped | frozenset(kept))
        case promql_parser.Call():
            for argument in expression.args:
                yield from selectors(argument, grouped)
        case promql_parser.BinaryExpr():
            yield from selectors(expression.lhs, grouped)
            yield from selectors(expression.rhs, grouped)


def test_no_label_holds_what_a_client_sent(mixed: Served) -> None:
    ask(mixed, "a model that is none")
    httpx.get(f"{mixed.root}/a-path-that-is-none", headers={"authorization": "Bearer sesame"})
    httpx.request("BREW", f"{mixed.root}/v1/models")
    text = httpx.get(f"{mixed.root}/metrics", headers={"authorization": "Bearer sesame"}).text
    assert not re.search("that.is.none|BREW|sesame", text)


def test_an_answer_is_counted_by_model_and_runtime(mixed: Served) -> None:
    before = families(mixed)
    assert ask(mixed, "pocket", max_tokens=7, ignore_eos=True).json()["usage"]["completion_tokens"] == 7
    after = families(mixed)
    labels = {"model_name": "pocket", "runtime": "llamacpp"}

    def more(name: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert more("vllm:generation_tokens") == 7
    assert more("vllm:inter_token_latency_seconds") == 6
    assert more("vllm:time_to_first_token_seconds") == more("vllm:request_success") == 1
    assert more("vllm:prompt_tokens") == more("vllm:prefix_cache_queries") > 10


def test_cached_tokens_are_counted_where_they_were(mixed: Served) -> None:
    found = families(mixed)
    hits = value(found, "vllm:prefix_cache_hits", runtime="llamacpp")
    tiers = [value(found, "enginehouse_cached_tokens", runtime="llamacpp", tier=tier) for tier in ("slot", "memory")]
    assert sum(tiers) == hits
    assert tiers[0] > 10


def test_who_is_answered_and_who_waits_and_what_the_kv_cache_holds(mixed: Served) -> None:
    with ThreadPoolExecutor() as threads:
        asked = [threads.submit(ask, mixed, "slow", "a" * 40) for _ in range(3)]
        until = time.monotonic() + SECONDS
        while True:
            found = families(mixed)
            running, waiting = (
                value(found, f"vllm:num_requests_{state}", model_name="slow") for state in ("running", "waiting")
            )
            assert time.monotonic() < until
            if (running, waiting) == (1, 2):
                break
        for one in asked:
            one.result()
        assert value(families(mixed), "vllm:num_requests_waiting") == 0
        asked = [threads.submit(ask, mixed, "pocket", max_tokens=500, ignore_eos=True)]
        while not value(families(mixed), "vllm:kv_cache_usage_perc", model_name="pocket"):
            assert not asked[0].done()


def test_failures_are_counted_by_what_they_were(mixed: Served) -> None:
    found = families(mixed)
    assert value(found, "enginehouse_request_failures", model_name="dies", reason="worker_died") == 1
    assert value(found, "enginehouse_rate_limit_refusals") == 3
    assert value(found, "enginehouse_upstream_up", model_name="remote") == 1
    assert value(found, "http_requests", handler="/v1/chat/completions", status="429") == 3


def test_a_stream_that_is_left_is_counted_as_cancelled_with_the_tokens_it_took(mixed: Served) -> None:
    before = families(mixed)
    body = {"model": "slow", "messages": [{"role": "user", "content": "a" * 200}], "stream": True}
    headers = {"authorization": "Bearer sesame"}
    with httpx.stream("POST", f"{mixed.root}/v1/chat/completions", json=body, headers=headers) as stream:
        lines = stream.iter_lines()
        while '"content":"a"' not in next(lines):
            pass
    until = time.monotonic() + SECONDS
    while not value(families(mixed), "enginehouse_request_failures", model_name="slow", reason="cancelled"):
        assert time.monotonic() < until
    after = families(mixed)
    assert value(after, "vllm:generation_tokens") > value(before, "vllm:generation_tokens")
    assert value(after, "vllm:request_success") == value(before, "vllm:request_success")


def test_every_metric_has_moved_after_a_mixed_run(mixed: Served) -> None:
    file = next(mixed.cache.parent.glob("config-*.yaml"))
    config = json.loads(file.read_text())
    change(mixed, "models: nonsense")
    mixed.wait_for("the new config is refused", SECONDS)
    assert value(families(mixed), "enginehouse_config_valid") == 0
    change(mixed, config | {"memory_budget": "80MiB"})
    mixed.wait_for("the config was read again; 1 changes", SECONDS)
    for model in ("echo", "dies", "slow", "echo"):  # of which not all fit
        assert ask(mixed, model).status_code == 200
    with ThreadPoolExecutor() as threads:
        asked = threads.submit(ask, mixed, "slow", "a" * 40)
        while not value(families(mixed), "vllm:num_requests_running"):
            pass
        others = [threads.submit(ask, mixed, model) for model in ("slow", "remote")]
        found = families(mixed)
        zero = {name for name in found if not value(found, name)}
        assert asked.result().status_code == 200
        [one.result() for one in others]
    later = families(mixed)
    assert value(later, "enginehouse_config_reloads", result="refused") == 1
    zero = {name for name in zero if not value(later, name)}
    assert zero - ELSEWHERE <= {
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "enginehouse_upstream_requests",
    }
