"""Every family's tool calls: their parser told by the template, read however the pieces fall, and enforced."""

import itertools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse import config
from enginehouse.runtimes.contract import Facts, Structured
from enginehouse.runtimes.decoding.tokenizer import Vocabulary
from enginehouse.runtimes.errors import NotEnforceable, Refused
from enginehouse.runtimes.grammar import ebnf
from enginehouse.runtimes.grammar.matcher import GrammarCompiler
from enginehouse.runtimes.structure import JsonValue
from enginehouse.runtimes.tool_calls import parsers
from enginehouse.runtimes.tool_calls.parser import ParseOptions, Tool
from enginehouse.runtimes.worker import prompt
from enginehouse.runtimes.worker.answer import OutputParser

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Køln (\"the\" city)"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
        "metric": {"type": "boolean"},
    },
    "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
FREE = {"type": "object", "properties": {"note": {"type": "string"}}, "additionalProperties": False}
TOOLS = (Tool("weather", JsonValue(json.dumps(SCHEMA), True)), Tool("note-it", JsonValue(json.dumps(FREE), True)))
HEADER = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"

# As each family's own template writes it, in a few words: tools, turns, calls and results.
TEMPLATES = {
    "hermes": """{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{"name": "{{ c.function.name }}", "arguments": {{
 c.function.arguments | tojson }}}</tool_call>{% endfor %}<|im_end|>{% endfor %}<think>""",
    "qwen-xml": """{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.role
}}{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call><function={{ c.function.name
}}>{% for k, v in c.function.arguments | items %}<parameter={{ k }}>{{ v }}</parameter>{%
endfor %}</function></tool_call>{% endfor %}{% endfor %}""",
    "llama-json": """{% for m in messages %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role
}}<|end_header_id|>{{ m.content }}{% for c in m.tool_calls or [] %}{"name": "{{ c.function.name }}", "parameters": {{
c.function.arguments | tojson }}}{% endfor %}<|eot_id|>{% endfor %}{{ tools | tojson if tools }}""",
    "pythonic": """{{ tools | tojson if tools }} answer with [func_name1(params_name1=value)]{% for m in messages %}{{
m.role }}{{ m.content }}{% for c in m.tool_calls or [] %}[{{ c.function.name }}({% for k, v in c.function.arguments |
items %}{{ k }}={{ v | tojson }}{% endfor %})]{% endfor %}{% endfor %}""",
    "mistral": """{% for m in messages %}{% if m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}{{
raise_exception('ids of 9 letters, please') }}{% endif %}[TOOL_RESULTS]{{ m.tool_call_id }}{{ m.content }}{% elif
m.tool_calls %}[TOOL_CALLS]{{ m.tool_calls | tojson }}{% else %}[INST]{{ m.content }}{% endif %}{% endfor %}""",
    "mistral-args": """{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}[TOOL_CALLS]{{
c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}[THINK]""",
    "phi": """{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function |
tojson }}{% endfor %}<|end|>{% endfor %}{% if tools %}<|tool|>{{ tools | tojson }}<|/tool|>{% endif %}""",
    "tool-code": """Call in a block of ```tool_code{% for m in messages %}{{ m.role }}{{ m.content }}{% for c in
m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments }}){% endfor %}{% endfor %}""",
    "gemma": """{% for m in messages %}{{ m.role }}{{ m.content }}{% for c in m.tool_calls or [] %}<|tool_call>call:{{
c.function.name }}{{ c.function.arguments }}<tool_call|>{% endfor %}{% endfor %}<|channel>thought""",
    "function-gemma": """{% for m in messages %}{{ m.role }}{{ m.content }}{% for c in m.tool_calls or [] %}{{
'<start_function_call>' + c.function.name }}{{ c.function.arguments }}{% endfor %}{% endfor %}""",
    "harmony": """{% for m in messages %}{% if m.role == 'tool' %}<|start|>functions.{{ m.name }} to=assistant{{
'<|channel|>' + m.content }}{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}{% for c in
m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{% endif %}{% endfor %}""",
    "deepseek": """{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{ '<｜tool▁calls▁begin｜>' +
c.function.name + '```json' + c.function.arguments }}{% endfor %}{% endfor %}""",
    "deepseek-v3.1": """{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{{
'<｜tool▁calls▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + c.function.arguments }}{% endfor %}{% endfor %}""",
    "generic": """{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}{{
raise_exception('unknown role') }}{% endif %}{{ m.role }}: {{ m.content }}
{% endfor %}""",
}  # fmt: skip

OSLO = ("weather", {"city": "Oslo", "days": 3})
NOTE = ("note-it", {"note": 'a "b" \\ {[\n é 👍'})
NOTED = json.dumps(NOTE[1], ensure_ascii=False)
# What a model of each family says: the text, and what a client should get of it: content, thought, calls.
ANSWERS: list[tuple[str, str, tuple[str, str, list[Any]]]] = [
    ("hermes", 'Well.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>\n'
     f'<tool_call>{{"name": "note-it", "arguments": {NOTED}}}</tool_call>', ("Well.", "", [OSLO, NOTE])),
    ("hermes", '<think>\nwhy <tool_call>?\n</think>\n\n<tool_call>\n{"arguments": {"city": "Oslo", "days": 3}, '
     '"name": "weather"}\n</tool_call>', ("", "why <tool_call>?", [OSLO])),
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": "{\\"city\\": \\"Oslo\\", \\"days\\": 3}"}\n</tool_call>',
     ("", "", [OSLO])),
    ("hermes", '<tool_call>\n{"name": "weather"}</tool_call>ok', ("ok", "", [("weather", {})])),
    ("hermes", '<tool_call>no {"json"}</tool_call>', ('<tool_call>no {"json"}</tool_call>', "", [])),
    ("hermes", '<tool_call>\n{"name": "wea', ('<tool_call>\n{"name": "wea', "", [])),
    ("qwen-xml", "Let me see.\n\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n</parameter>\n"
     "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=note-it>\n<parameter=note>\n"
     "a \"b\" \\ {[\n é 👍\n</parameter>\n</function>\n</tool_call>", ("Let me see.", "", [OSLO, NOTE])),
    ("qwen-xml", "<function=note-it>\n<parameter=note>\n17\n</parameter>\n</function>",
     ("", "", [("note-it", {"note": "17"})])),
    ("llama-json", '{"name": "weather", "parameters": {"city": "Oslo", "days": 3}}', ("", "", [OSLO])),
    ("llama-json", f'<|python_tag|>{{"name": "weather", "parameters": {{"city": "Oslo", "days": 3}}}}; '
     f'{{"name": "note-it", "parameters": {NOTED}}}', ("", "", [OSLO, NOTE])),
    ("llama-json", 'It is {"name": 1}', ('It is {"name": 1}', "", [])),
    ("llama-json", '{"name": 1}', ('{"name": 1}', "", [])),
    ("pythonic", "[weather(city=\"Oslo\", days=3), note-it(note='a \"b\" \\\\ {[\\n é 👍')]", ("", "", [OSLO, NOTE])),
    ("pythonic", '<|python_start|>[weather(city="Oslo", metric=True, days=3)]<|python_end|>',
     ("", "", [("weather", {"city": "Oslo", "metric": True, "days": 3})])),
    ("pythonic", "[weather(Oslo)]", ("[weather(Oslo)]", "", [])),
    ("pythonic", "[a link](there)", ("[a link](there)", "", [])),
    ("mistral", f'[TOOL_CALLS][{{"name": "weather", "arguments": {{"city": "Oslo", "days": 3}}, "id": "abcdefghi"}}, '
     f'{{"name": "note-it", "arguments": {NOTED}}}]', ("", "", [OSLO, NOTE])),
    ("mistral-args", f'[THINK]hm[/THINK]Right.[TOOL_CALLS]weather[ARGS]{{"city": "Oslo", "days": 3}}'
     f"[TOOL_CALLS]note-it[CALL_ID]abcdefghi[ARGS]{NOTED}", ("Right.", "hm", [OSLO, NOTE])),
    ("phi", f'<|tool_call|>[{{"name": "weather", "arguments": {{"city": "Oslo", "days": 3}}}}, '
     f'{{"type": "function", "function": {{"name": "note-it", "arguments": {NOTED}}}}}]<|/tool_call|>',
     ("", "", [OSLO, NOTE])),
    ("phi", 'functools[{"name": "weather", "arguments": {"city": "Oslo", "days": 3}}]', ("", "", [OSLO])),
    ("tool-code", 'Sure.\n```tool_code\nweather(city="Oslo", days=3)\n```', ("Sure.", "", [OSLO])),
    ("gemma", '<|channel>thought\nhm\n<channel|>Ok.<|tool_call>call:weather{city:<|"|>Oslo<|"|>,days:3}<tool_call|>'
     '<|tool_call>call:note-it{note:<|"|>a "b" \\ {[\n é 👍<|"|>}<tool_call|>', ("Ok.", "hm", [OSLO, NOTE])),
    ("gemma", "<|tool_call>call me<tool_call|>!", ("<|tool_call>call me<tool_call|>!", "", [])),
    ("gemma", "<|tool_call>call:weather{", ("<|tool_call>call:weather{", "", [])),
    ("function-gemma", "<start_function_call>call:weather{city:<escape>Oslo<escape>,days:3}<end_function_call>",
     ("", "", [OSLO])),
    ("harmony", f'<|channel|>analysis<|message|>hm {{}}<|end|><|start|>assistant{HEADER}'
     '{"city": "Oslo", "days": 3}<|call|>',
     ("", "hm {}", [OSLO])),
    ("harmony", '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>'
     '{"city": "Oslo", "days": 3}',
     ("", "", [OSLO])),
    ("harmony", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Oslo is cold."
     "<|return|>", ("Oslo is cold.", "hm", [])),
    ("deepseek", "<think>\nhm\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
     '```json\n{"city": "Oslo", "days": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>'
     f"note-it\n```json\n{NOTED}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", ("", "hm", [OSLO, NOTE])),
    ("deepseek-v3.1", 'Let me.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Oslo", '
     f'"days": 3}}<｜tool▁call▁end｜><｜tool▁call▁begin｜>note-it<｜tool▁sep｜>{NOTED}<｜tool▁call▁end｜>'
     "<｜tool▁calls▁end｜>", ("Let me.", "", [OSLO, NOTE])),
    ("generic", f'{{"name": "weather", "arguments": {{"city": "Oslo", "days": 3}}}}\n'
     f'{{"name": "note-it", "arguments": {NOTED}}}', ("", "", [OSLO, NOTE])),
    ("generic", "Nothing to call.", ("Nothing to call.", "", [])),
]  # fmt: skip
# Tags and beginnings of all families in any order: nonsense must come out alike too.
PARTS = [
    *{part for _, text, _ in ANSWERS for part in (text, text[: len(text) // 2], text[len(text) // 2 :])},
    "<tool_call>", "</tool_call>", "[", "]", "{", "}", '"', ",", "\n", "<think>", "</think>", "[TOOL_CALLS]", "é",
]  # fmt: skip


def read(name: str, pieces: Sequence[bytes], reasoning: bool = True) -> tuple[str, str, list[tuple[str, str]]]:
    """Content, thought and calls of an answer that came in these pieces."""
    options = ParseOptions(TOOLS, reasoning=reasoning)
    output = OutputParser((), lambda scanner: parsers.parsers()[name].read(scanner, options))
    deltas = [delta for piece in pieces for delta in output.feed(piece)] + output.end()
    parts = [delta.tool_call for delta in deltas if delta.tool_call]
    assert all(bool(part.name) != bool(part.arguments) for part in parts)
    assert [part.index for part in parts] == sorted(part.index for part in parts)
    calls = [
        (part.name, "".join(other.arguments for other in parts if other.index == part.index))
        for part in parts
        if part.name
    ]
    return "".join(d.text for d in deltas), "".join(d.reasoning for d in deltas), calls


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut_at % (len(data) + 1) for cut_at in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("name", sorted(parsers.parsers()))
def test_a_template_is_told_by_its_form_and_no_other(name: str) -> None:
    assert parsers.parser_of(TEMPLATES[name]).name == name
    assert name == "generic" or sum(parser.recognizes(TEMPLATES[name]) for parser in parsers.parsers().values()) == 1


@pytest.mark.parametrize(
    ("name", "text", "expected"), ANSWERS, ids=[f"{name}-{at}" for at, (name, _, _) in enumerate(ANSWERS)]
)
def test_what_a_model_says_becomes_content_thought_and_calls(name: str, text: str, expected: Any) -> None:
    for pieces in ([text.encode()], [bytes([byte]) for byte in text.encode()]):
        content, thought, calls = read(name, pieces)
        assert (content, thought, [(call, json.loads(arguments)) for call, arguments in calls]) == expected


@given(
    st.sampled_from(sorted(parsers.parsers())),
    st.lists(st.sampled_from(sorted(PARTS)), max_size=6).map("".join),
    st.lists(st.integers(0, 10_000)),
    st.booleans(),
)
def test_how_any_text_is_cut_into_pieces_changes_nothing(
    name: str, text: str, cuts: list[int], reasoning: bool
) -> None:
    assert read(name, cut(text.encode(), cuts), reasoning) == read(name, [text.encode()], reasoning)


DEEP = "[" * 5000 + "]" * 5000
NESTED = {
    "qwen-xml": f"<tool_call><function=note-it><parameter=a>{DEEP}</parameter></function></tool_call>",
    "gemma": f"<|tool_call>call:note-it{{a:{DEEP}}}<tool_call|>",
    "function-gemma": f"<start_function_call>call:note-it{{a:{DEEP}}}<end_function_call>",
    "phi": f'<|tool_call|>[{{"arguments": {{"a": {DEEP}}}, "name": "note-it"}}]<|/tool_call|>',
    "mistral": f'[TOOL_CALLS][{{"arguments": {{"a": {DEEP}}}, "name": "note-it"}}]',
    "mistral-args": f'[TOOL_CALLS][{{"arguments": {{"a": {DEEP}}}, "name": "note-it"}}]',
    "pythonic": f"[note-it(a={DEEP})]",
}


@pytest.mark.parametrize("name", NESTED)
def test_arguments_nested_deeper_than_python_recurses_are_text_and_end_nothing(name: str) -> None:
    content, _, calls = read(name, [NESTED[name].encode()])
    assert DEEP in "".join([content, *(arguments for _, arguments in calls)])


# Whose arguments are JSON, or known to be complete, only at their end.
COME_WHOLE = {"function-gemma", "gemma", "pythonic", "qwen-xml", "tool-code"}


@pytest.mark.parametrize("name", sorted(parsers.parsers().keys() - COME_WHOLE))
def test_arguments_come_before_they_are_complete(name: str) -> None:
    text = next(text for other, text, (_, _, calls) in ANSWERS if other == name and OSLO in calls)
    _, _, calls = read(name, [text[: text.index('"Os') + 3].encode()])
    assert calls == [("weather", '{"city": "Os')]


@pytest.mark.parametrize("name", sorted(parsers.parsers()))
def test_calls_and_results_go_back_through_the_template(name: str) -> None:
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [{"id": "call_0123456789", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "call_0123456789", "content": "sunny"},
    ]
    facts = Facts(100, 1, 10, TEMPLATES[name], "", "", "cpu", ())
    tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}]
    text = prompt.render(facts, messages, tools, {})
    assert "Oslo" in text
    assert "sunny" in text
    assert "strict" not in text
    assert name != "harmony" or "functions.weather to=assistant" in text


# --- what is enforced ---


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(Path(config.__file__).parent / "pocket")


@pytest.fixture(scope="module")
def compiler(vocabulary: Vocabulary) -> GrammarCompiler:
    return GrammarCompiler(vocabulary.pieces, sorted(vocabulary.special), vocabulary.ends, vocabulary.encode)


def random_answer(
    compiler: GrammarCompiler, vocabulary: Vocabulary, structure: Any, seed: int, most: int = 400
) -> str | None:
    """An answer of random tokens of those that may come next; None where it does not end."""
    import numpy as np

    matcher, chance, answer = compiler.matcher(Structured(structure)), random.Random(seed), b""
    for _ in range(most):
        logits = np.zeros(vocabulary.size, np.float32)
        matcher.forbid(logits)
        token = chance.choice(np.flatnonzero(logits == 0).tolist())
        if token in vocabulary.ends:
            return answer.decode()
        answer += vocabulary.pieces[token]
        if matcher.accept(token):
            return answer.decode()
    return None


@pytest.mark.parametrize("reasoning", [False, True])
@pytest.mark.parametrize("name", sorted(parsers.parsers()))
def test_whatever_is_admitted_where_a_call_is_required_is_read_as_valid_calls(
    name: str, reasoning: bool, compiler: GrammarCompiler, vocabulary: Vocabulary
) -> None:
    parser = parsers.parsers()[name]
    for parallel in (False, True):
        options = ParseOptions(TOOLS[:1], required=True, parallel=parallel)
        ended = 0
        for seed in range(12):
            text = random_answer(compiler, vocabulary, parser.structure(options), seed)
            if text is None:
                continue
            ended += 1
            if reasoning and parser.thought[0]:
                text = f"{parser.thought[0]}\nhm\n{parser.thought[1]}\n\n{text}"
            content, thought, calls = read(name, [text.encode()], reasoning)
            assert content.strip() == "", text
            assert len(calls) == 1 or (parallel and len(calls) > 1), text
            for called, arguments in calls:
                assert called == "weather"
                jsonschema.validate(json.loads(arguments), SCHEMA)
            assert thought == "" or reasoning or name == "harmony"
        assert ended > 1


def admits(compiler: GrammarCompiler, vocabulary: Vocabulary, structure: Any, text: str) -> bool:
    """Whether an answer may be this and end there."""
    import numpy as np

    matcher = compiler.matcher(Structured(structure))
    ids = vocabulary._tokenizer.encode(text, add_special_tokens=False).ids
    logits = np.zeros(vocabulary.size, np.float32)
    for at, token in enumerate([*ids, vocabulary.ends[0]]):
        logits[:] = 0
        matcher.forbid(logits)
        if logits[token] != 0:
            return False
        if matcher.accept(token):
            return at >= len(ids) - 1
    return True


@pytest.mark.parametrize("name", sorted(parsers.parsers()))
def test_text_is_free_where_no_call_is_required_and_a_call_is_whole(
    name: str, compiler: GrammarCompiler, vocabulary: Vocabulary
) -> None:
    parser = parsers.parsers()[name]
    structure = parser.structure(ParseOptions(TOOLS, reasoning=bool(parser.thought[0])))
    begin, end = parser.thought
    plain = (
        "It is <cold> in {Oslo} [today]." if name != "harmony" else "<|channel|>final<|message|>It is {cold} [today]."
    )
    assert admits(compiler, vocabulary, structure, plain)
    call = next(text for other, text, (_, _, calls) in ANSWERS if other == name and OSLO in calls)
    admitted = {
        "qwen-xml": call.replace("\n\n<tool_call>", "<tool_call>", 1),
        "mistral": call.replace(', "id": "abcdefghi"', ""),
        "mistral-args": call.replace("[CALL_ID]abcdefghi", ""),
        "phi": call.replace('{"type": "function", "function": ', "").replace("}}]", "}]"),
        "harmony": call.removesuffix("<|call|>"),
        "hermes": call.replace('<tool_call>{', '<tool_call>\n{').replace('}</tool', '}\n</tool'),
        "pythonic": '[weather(city="Oslo", days=3)]',
    }.get(name, call)  # fmt: skip
    assert admits(compiler, vocabulary, structure, admitted), admitted
    if begin:
        assert admits(compiler, vocabulary, structure, f"{begin}\nhm\n{end}\n\n{plain}")
        assert (
            admits(compiler, vocabulary, structure, f"{begin}\nhm\n{end}\n\n{admitted.removeprefix(begin)}")
            or begin in admitted
        )
    if name != "pythonic":  # a list of something else is text there
        assert not admits(compiler, vocabulary, structure, admitted.replace("weather", "whether"))
    assert not admits(compiler, vocabulary, structure, admitted[:-3])


@pytest.mark.parametrize("name", sorted(parsers.parsers()))
def test_every_structure_can_be_written_for_xgrammar_too(name: str) -> None:
    for required in (False, True):
        structure = parsers.parsers()[name].structure(ParseOptions(TOOLS, required=required, reasoning=True))
        assert ebnf.grammar(structure).startswith("root ::=")


def test_content_keeps_to_a_schema_after_the_thought_with_tools_and_without(
    compiler: GrammarCompiler, vocabulary: Vocabulary
) -> None:
    content = JsonValue(
        '{"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": false}', True
    )
    for name, thought, answer in (
        ("hermes", "hm {</think>\n\n", ""),
        ("mistral-args", "hm[/THINK]", ""),
        ("harmony", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant", "<|channel|>final<|message|>"),
    ):
        for tools in ((), TOOLS):
            structure = parsers.parsers()[name].structure(
                ParseOptions(tools, reasoning=True, thinking=True, content=content)
            )
            assert admits(compiler, vocabulary, structure, thought + answer + '{"a": 17}')
            assert not admits(compiler, vocabulary, structure, thought + answer + "seventeen")
            assert not admits(compiler, vocabulary, structure, thought)
            assert ebnf.grammar(structure)
    with pytest.raises(Refused) as refused:
        parsers.parsers()["llama-json"].structure(ParseOptions(TOOLS, content=content))
    assert refused.value.param == "response_format"


def test_a_schema_that_cannot_be_enforced_is_refused_where_it_must_be_and_else_is_any_object(
    compiler: GrammarCompiler,
) -> None:
    hard = json.dumps({"type": "object", "not": {"required": ["a"]}})
    for must in (True, False):
        options = ParseOptions((Tool("f", JsonValue(hard, must)),), required=True)
        structure = parsers.parsers()["hermes"].structure(options)
        if must:
            with pytest.raises(Refused) as refused:
                compiler.matcher(Structured(structure))
            assert refused.value.param == "tools"
            with pytest.raises(NotEnforceable):
                ebnf.grammar(structure)
        else:
            assert compiler.matcher(Structured(structure))
            assert ebnf.grammar(structure)


def test_a_structure_survives_the_way_to_another_process() -> None:
    for parser in parsers.parsers().values():
        structured = Structured(parser.structure(ParseOptions(TOOLS, reasoning=True)))
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(structured), type=Structured) == structured
