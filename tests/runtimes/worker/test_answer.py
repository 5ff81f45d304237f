"""Text on its way out: stop strings, reasoning and tool calls, however the pieces fall."""

import itertools
import json
import time

from hypothesis import given
from hypothesis import strategies as st

from enginehouse.runtimes.contract import Delta, Token
from enginehouse.runtimes.structure import JsonValue
from enginehouse.runtimes.tool_calls.parser import ParseOptions, Tool
from enginehouse.runtimes.tool_calls.parsers.hermes import PARSER
from enginehouse.runtimes.worker.answer import Answer, OutputParser

ALPHABET = [
    "a",
    "b",
    "\n",
    " ",
    "é",
    "日",
    "👍",
    "<",
    ">",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "STOP",
    "ST",
]
TOOL = Tool("f", JsonValue("{}", must=False))
texts = st.lists(st.sampled_from([*ALPHABET, '{"name": "f", "arguments": {"x": 1}}']), max_size=25).map("".join)


def run(pieces: list[bytes], **asked: object) -> tuple[str, str, list[tuple[str, str]]]:
    """Content, reasoning and calls of an answer that came in these pieces."""
    stop = asked.pop("stop", ())
    options = ParseOptions((TOOL,) if asked.pop("tools", False) else (), **asked)  # type: ignore[arg-type]
    output = OutputParser(stop, lambda scanner: PARSER.read(scanner, options))  # type: ignore[arg-type]
    deltas: list[Delta] = []
    for piece in pieces:
        if not output.stopped:
            deltas += output.feed(piece)
    deltas += output.end()
    pieces_of_calls = [delta.tool_call for delta in deltas if delta.tool_call]
    calls = [
        (call.name, "".join(piece.arguments for piece in pieces_of_calls if piece.index == call.index))
        for call in pieces_of_calls
        if call.name
    ]
    return "".join(d.text for d in deltas), "".join(d.reasoning for d in deltas), calls


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut_at % (len(data) + 1) for cut_at in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(
    texts,
    st.lists(st.integers(0, 10_000)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(), ("STOP",), ("b\n", "a"), ("STSTOP", "TST", "\n ab", "b")]),
)
def test_how_text_is_cut_into_pieces_changes_nothing(
    text: str, cuts: list[int], reasoning: bool, tools: bool, stop: tuple[str, ...]
) -> None:
    whole = run([text.encode()], reasoning=reasoning, tools=tools, stop=stop)
    assert run(cut(text.encode(), cuts), reasoning=reasoning, tools=tools, stop=stop) == whole


@given(st.text(), st.lists(st.integers(0, 10_000)))
def test_plain_text_arrives_unchanged(text: str, cuts: list[int]) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert run(cut(text.encode(), cuts)) == (text, "", [])


@given(st.text(alphabet="abST OP", max_size=40))
def test_text_from_a_stop_string_on_is_never_sent(text: str) -> None:
    content, _, _ = run([bytes([b]) for b in text.encode()], stop=("STOP", "TOS"))
    ends = [at for at in (text.find("STOP"), text.find("TOS")) if at >= 0]
    assert content == (text[: min(ends)] if ends else text)


def test_a_broken_utf8_sequence_becomes_one_replacement_character() -> None:
    assert run([b"ok \xe6\x97"]) == ("ok \ufffd", "", [])


def test_a_thought_is_split_from_the_answer() -> None:
    assert run([b"<think>\nhmm\n</think>\n\nParis"], reasoning=True) == ("Paris", "hmm", [])


def test_a_template_that_opens_the_thought_itself_is_understood() -> None:
    assert run([b"hmm</think>Paris"], reasoning=True, thinking=True) == ("Paris", "hmm", [])


def test_tags_are_plain_text_for_a_model_without_them() -> None:
    text = "<think>a</think><tool_call>b</tool_call>"
    assert run([text.encode()]) == (text, "", [])


def test_two_tool_calls_come_out_as_two() -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'
    content, _, calls = run([f"{call}\n{call}".encode()], tools=True)
    assert (content, [(name, json.loads(arguments)) for name, arguments in calls]) == ("", [("f", {"x": "é"})] * 2)


def test_a_call_that_is_not_json_is_shown_rather_than_lost() -> None:
    text = "<tool_call>not json</tool_call>"
    assert run([text.encode()], tools=True) == (text, "", [])


def test_a_call_cut_off_by_the_length_limit_is_shown_rather_than_lost() -> None:
    text = '<tool_call>\n{"name": "f", "argu'
    assert run([text.encode()], tools=True) == (text, "", [])


def test_the_stop_string_that_came_first_is_the_one_named() -> None:
    output = OutputParser(("two", "STOP"))
    output.feed(b"one STOP two")
    assert output.stopped == "STOP"


def test_of_stop_strings_within_each_other_the_one_that_is_complete_first_ends_the_answer() -> None:
    output = OutputParser(("bcde", "cd", "d"))
    assert "".join(delta.text for delta in output.feed(b"abcde")) == "ab"
    assert output.stopped == "cd"


def test_what_a_token_costs_does_not_grow_with_the_number_of_stop_strings() -> None:
    output = OutputParser([f"stop {number}" for number in range(10_000)])
    began = time.monotonic()
    for _ in range(1000):
        output.feed(b"stop sto")
    assert time.monotonic() - began < 1


def content_and_its_tokens(pieces: list[bytes], stop: tuple[str, ...] = (), **asked: bool) -> tuple[str, bytes]:
    """The content of a chat's answer, and the tokens whose log-probabilities came with it."""
    options = ParseOptions((TOOL,) if asked.pop("tools", False) else (), **asked)  # type: ignore[arg-type]
    answer = Answer(0, OutputParser(stop, lambda scanner: PARSER.read(scanner, options)), scores_end=False)
    deltas: list[Delta] = []
    for piece in pieces:
        if not answer.output.stopped:
            deltas += answer.take(Token(0, 1, piece, logprob=-1.0))
    deltas += answer.take(Token(0, -1, b"", "stop", logprob=-1.0))
    deltas += answer.end()
    assert not any(delta.logprobs for delta in deltas if not delta.text)
    return "".join(d.text for d in deltas), b"".join(one.token.text for delta in deltas for one in delta.logprobs)


@given(texts, st.booleans(), st.booleans(), st.sampled_from([(), ("STOP",), ("b\n", "a")]))
def test_log_probabilities_are_those_of_the_contents_tokens(
    text: str, reasoning: bool, tools: bool, stop: tuple[str, ...]
) -> None:
    for pieces in ([letter.encode() for letter in text], [bytes([byte]) for byte in text.encode()]):
        content, tokens = content_and_its_tokens(pieces, stop, reasoning=reasoning, tools=tools)
        assert tokens.decode() == content


@given(st.lists(st.sampled_from(["The", " capital of F", "ran", "ce", "é", " F", "rance", "."])), st.booleans())
def test_a_token_that_a_stop_string_cuts_is_told_as_far_as_it_is_content(pieces: list[str], stops: bool) -> None:
    content, tokens = content_and_its_tokens([piece.encode() for piece in pieces], ("France",) if stops else ())
    assert tokens.decode() == content == ("".join(pieces).partition("France")[0] if stops else "".join(pieces))


def test_a_completions_end_is_among_the_log_probabilities_unless_a_stop_string_ended_it() -> None:
    for stop, tokens in (((), [b"a", b" b", b""]), ((" b",), [b"a"])):
        answer = Answer(0, OutputParser(stop), scores_end=True)
        deltas = [delta for piece in (b"a", b" b") for delta in answer.take(Token(0, 1, piece, logprob=-1.0))]
        deltas += [*answer.take(Token(0, -1, b"", "stop", logprob=-1.0)), *answer.end()]
        assert [one.token.text for delta in deltas for one in delta.logprobs] == tokens
