"""A custom tool's text, read out of a call's arguments as they come."""

import json

from hypothesis import given
from hypothesis import strategies as st

from enginehouse.runtimes.contract import Delta, Done, ToolCall, Usage
from enginehouse.server.api.responses.custom_input import CustomInput, free_arguments, free_input
from enginehouse.server.api.responses.protocol import ResponseRequest
from enginehouse.server.api.responses.render import ResponseRenderer
from enginehouse.server.api.responses.tools import toolset
from tests.server.api.test_dialects import data_of, streamed, unsaved

TEXT = '*** Begin\n+a "word" \\ \U0001f600 é\n'


@given(st.text(), st.booleans(), st.integers(1, 9))
def test_a_text_comes_once_however_its_json_is_cut(text: str, ascii: bool, size: int) -> None:
    written = json.dumps({"input": text}, ensure_ascii=ascii)
    reader = CustomInput()
    pieces = [reader.feed(written[at : at + size]) for at in range(0, len(written), size)]
    assert "".join(pieces) == text == free_input(written) == free_input(free_arguments(text))
    assert reader.letters == len(text)


def test_a_call_that_was_cut_off_or_has_another_form_loses_nothing() -> None:
    assert free_input('{"input": "a\\nb\\u00') == "a\nb"
    assert free_input('{"patch": "a"}') == '{"patch": "a"}'
    assert free_input('{"input": 5}') == '{"input": 5}'
    assert free_input('{"in') == '{"in'


def test_a_text_streams_while_it_is_written() -> None:
    """Codex gives up after 300 s without an event, and a patch can take longer."""
    tools = toolset([{"type": "custom", "name": "apply_patch"}], [])
    written = [Delta(tool_call=ToolCall(0, arguments=letter)) for letter in json.dumps({"input": TEXT})]
    for cut in (len(written), len(written) - 9):
        end = Done("tool_calls" if cut == len(written) else "length", Usage(7, 5))
        changes = [Delta(tool_call=ToolCall(0, name="apply_patch")), *written[:cut]]
        renderer = ResponseRenderer(ResponseRequest("pocket", "hello"), unsaved, tools)
        events = data_of(streamed(renderer, changes, end))
        deltas = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
        (done,) = [event["input"] for event in events if event["type"] == "response.custom_tool_call_input.done"]
        assert len(deltas) > 20
        assert "".join(deltas) == done == events[-1]["response"]["output"][0]["input"]
        assert TEXT.startswith(done)
    assert done != TEXT
