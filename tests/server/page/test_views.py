"""The other views: what they show is what the server says."""

import json
import re
import sys

import httpx
import pytest
from playwright.sync_api import expect

from tests.client_results import FILE
from tests.server.page.conftest import Open
from tests.serving import Served, serve

# As on a machine where it is not installed.
WITHOUT_MLX = (
    sys.executable,
    "-c",
    "import importlib.util as u; find = u.find_spec; u.find_spec = lambda name: None if name == 'mlx' else find(name);"
    "from enginehouse.server.cli.main import main; main()",
)
FRANCE, PARIS = "What is the capital of France?", "The capital of France is Paris."


def test_the_house_shows_host_runtimes_and_memory_by_model(opened: Open, served: Served) -> None:
    served.client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}])
    host = httpx.get(f"{served.root}/v1/host").json()
    page = opened(served.root)
    expect(page.get_by_role("region", name="Machine")).to_contain_text(host["host"]["processor"])
    rows = page.get_by_role("region", name="Runtimes").get_by_role("row")
    for runtime in host["runtimes"]:
        row = rows.filter(has=page.get_by_role("rowheader", name=runtime["name"]))
        expect(row).to_contain_text(runtime["unavailable"] or "ready")
    memory = page.get_by_role("region", name="Memory").get_by_role("img")
    expect(memory).to_have_attribute("aria-label", re.compile(r"echo \d+ MiB.* of \d"))
    expect(page.locator(".tile").first).to_contain_text(re.compile(r"\d of 6"))


def test_a_runtime_that_cannot_run_says_why(opened: Open, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("without")
    with serve(folder, {"echo": {"source": "builtin:echo"}}, command=WITHOUT_MLX) as without:
        page = opened(without.root)
        row = page.get_by_role("region", name="Runtimes").get_by_role("row").filter(has_text="mlx")
        expect(row).to_contain_text("unavailable")
        expect(row).to_contain_text("'mlx' is not installed; pip install 'enginehouse[mlx]'")


def test_a_model_is_loaded_and_unloaded_and_says_how_far_it_is_and_why_it_is_so(opened: Open, served: Served) -> None:
    page = opened(f"{served.root}/#models")
    card = page.get_by_role("article", name="Model pocket", exact=True)
    expect(card).to_contain_text("Chosen: llamacpp/cpu/Q8_0, pinned by 'runtime'")
    card.get_by_role("button", name="Load").click()
    expect(card.locator(".progress")).to_contain_text(
        re.compile(r"(convert|quantize|check|load), \d+ %, about .* left")
    )
    expect(card.get_by_role("progressbar")).to_have_attribute("max", "100")
    expect(card).to_contain_text(re.compile(r"llamacpp / cpu / Q8_0 · [\d,]+ tokens of context, 8 slots · \d+ MiB"))
    expect(page.get_by_role("status")).to_have_text("pocket is loaded")
    card.get_by_text("Every candidate").click()
    expect(card.get_by_role("region", name="Candidates")).to_contain_text(re.compile(r"0\.0\d+.* %"))
    expect(card.get_by_role("region", name="Not these")).to_contain_text("'runtime' is pinned to 'llamacpp'")
    card.get_by_role("button", name="Unload").click()
    expect(card.locator(".state")).to_have_text("unloaded")


def test_a_stand_in_says_that_a_better_one_is_made(opened: Open, tmp_path_factory: pytest.TempPathFactory) -> None:
    models = {"pocket": {"source": "builtin:pocket", "runtime": "llamacpp"}}
    with serve(tmp_path_factory.mktemp("stand-in"), models, optimize={"first_load": "serve-now"}) as fresh:
        page = opened(f"{fresh.root}/#models")
        card = page.get_by_role("article", name="Model pocket")
        card.get_by_role("button", name="Load").click()
        expect(card).to_contain_text("llamacpp / cpu / BF16")
        expect(card.locator(".progress")).to_contain_text(re.compile(r"a better one is made: \w+, \d+ %"))
        expect(card).to_contain_text("llamacpp / cpu / Q4_K_M")
        expect(card.locator(".progress")).to_be_hidden()


def test_what_cannot_be_loaded_says_why(opened: Open, served: Served) -> None:
    page = opened(f"{served.root}/#models")
    card = page.get_by_role("article", name="Model nowhere")
    card.get_by_role("button", name="Load").click()
    expect(card.get_by_role("alert")).to_contain_text("no-such-folder")


def test_two_models_answer_the_same_side_by_side(opened: Open, served: Served) -> None:
    page = opened(f"{served.root}/#compare")
    page.get_by_label("Question").fill(FRANCE)
    page.get_by_label("First", exact=True).and_(page.locator("select")).select_option("pocket")
    page.get_by_label("Second", exact=True).and_(page.locator("select")).select_option("pocket-f32")
    page.get_by_text("Sampling").click()
    page.get_by_label("temperature").fill("0")
    page.get_by_role("button", name="Ask both").click()
    for side in ("First answer", "Second answer"):
        expect(page.get_by_role("region", name=side)).to_contain_text(PARIS)
    figures = page.get_by_role("region", name="Both in figures")
    for row in ("served by llamacpp / cpu / Q8_0 llamacpp / cpu / F32", "speed", "first token", "agreement"):
        expect(figures.get_by_role("row", name=row)).to_be_visible()
    expect(figures.get_by_role("row", name="agreement")).to_contain_text(re.compile(r"9\d\.\d %|100\.0 %"))


def test_a_failure_of_one_side_leaves_the_other(opened: Open, served: Served) -> None:
    page = opened(f"{served.root}/#compare")
    page.get_by_label("Question").fill("boom")
    page.get_by_label("First", exact=True).and_(page.locator("select")).select_option("broken")
    page.get_by_label("Second", exact=True).and_(page.locator("select")).select_option("echo")
    page.get_by_text("both at once").click()
    page.get_by_role("button", name="Ask both").click()
    expect(page.get_by_role("region", name="First answer").get_by_role("alert")).not_to_be_empty()
    expect(page.get_by_role("region", name="Second answer")).to_contain_text("boom")


def test_charts_follow_what_the_server_counts(opened: Open, served: Served) -> None:
    page = opened(f"{served.root}/#charts")
    chart = page.get_by_role("region", name="Tokens per second")
    expect(chart.get_by_role("img")).to_have_attribute("aria-label", re.compile("Tokens per second: "))
    stream = served.client.chat.completions.create(
        model="slow", messages=[{"role": "user", "content": "one two " * 20}], stream=True
    )
    expect(page.get_by_role("region", name="Requests under way")).to_contain_text(re.compile(r"slow\s*1"))
    for _ in stream:
        pass
    expect(chart).to_contain_text(re.compile(r"slow\s*[\d.]*[1-9][\d.]* tokens/s"))
    expect(chart.locator("path.line[d*=L]").first).to_be_attached()


def test_every_client_that_was_tried_is_pointed_here_as_it_was_tried(opened: Open, served: Served) -> None:
    page = opened(f"{served.root}/#clients")
    page.get_by_label("Model", exact=True).select_option("pocket")
    expect(page.locator("main")).to_contain_text(f"OpenAI's API is at {served.root}/v1")
    shown = page.evaluate("""async () => {
        const { CLIENTS, filled } = await import("/page/client_settings.js");
        const all = CLIENTS.flatMap(({ clients }) => clients);
        return all.map(({ script, text }) => [script, text, filled(text, location.origin, "pocket", "any")]);
    }""")
    tried = json.loads(FILE.read_text())
    assert {script for script, _, _ in shown if script} == tried.keys()
    for script, text, ready in shown:
        expect(page.locator("main pre", has_text=ready.strip()).first).to_be_visible()
        for piece in re.findall(r"`([^`]+)`", tried[script]["settings"] if script else ""):
            wanted = re.sub(r'(?<=[=" ])any\b', "KEY", piece).removesuffix(")").removesuffix(" }")  # more may follow
            assert wanted in text or piece.endswith((".yaml", ".json", ".toml")), (script, piece)


def test_settings_are_copied(opened: Open, served: Served) -> None:
    page = opened(f"{served.root}/#clients")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy: qwen-code").click()
    expect(page.get_by_role("status")).to_have_text("copied")
    assert f"OPENAI_BASE_URL={served.root}/v1" in page.evaluate("navigator.clipboard.readText()")


def test_the_charts_know_what_the_server_calls_its_counters(opened: Open, served: Served) -> None:
    served.client.chat.completions.create(model="echo", messages=[{"role": "user", "content": "hi"}])
    page = opened(served.root)
    told = page.evaluate("""async () => {
        const { read } = await import("/page/metrics.js");
        return read(await (await fetch("/metrics")).text());
    }""")
    assert told["tokens"]["echo"] >= 2
    assert set(told["underWay"]) == {model["id"] for model in httpx.get(f"{served.root}/v1/models").json()["data"]}
