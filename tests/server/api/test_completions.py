"""/v1/completions, as evaluation harnesses and older clients use it."""

import asyncio
from typing import Any

import httpx
import pytest

from enginehouse.runtimes.engines import runtimes
from tests.conftest import ENGINES
from tests.serving import Served

TEXT = "The capital of France is"
TURN = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def complete(house: Served, prompt: Any = TURN, model: str = "pocket", **options: Any) -> Any:
    options = {"temperature": 0, "max_tokens": 30} | options
    client = house.client.with_options(timeout=300)  # an engine may have to be built for
    return client.completions.create(model=model, prompt=prompt, **options)


def ids_of(house: Served, text: str) -> list[int]:
    reply = httpx.post(f"{house.root}/tokenize", json={"model": "pocket", "prompt": text}, timeout=60)
    ids: list[int] = reply.json()["tokens"]
    return ids


# --- prompts ---


def test_a_prompt_goes_on_as_it_stands(house: Served) -> None:
    reply = complete(house)
    assert (reply.object, reply.choices[0].text) == ("text_completion", "The capital of France is Paris.")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].logprobs is None
    assert reply.system_fingerprint.startswith("fp_")


def test_sixteen_tokens_are_said_unless_more_are_asked_for(house: Served) -> None:
    reply = house.client.completions.create(model="pocket", prompt=TEXT, extra_body={"ignore_eos": True})
    assert (reply.usage.completion_tokens, reply.choices[0].finish_reason) == (16, "length")  # type: ignore[union-attr]


def test_token_ids_and_lists_say_what_the_text_says_in_order(house: Served) -> None:
    other = TURN.replace("France", "Norway")
    ids, others = ids_of(house, TURN), ids_of(house, other)
    expected = [complete(house, text).choices[0].text for text in (TURN, other)]
    assert expected[0] != expected[1]
    for prompt in ([TURN, other], [ids, others], [ids_of(house, TURN), others]):
        reply = complete(house, prompt)
        assert [choice.text for choice in reply.choices] == expected
        assert [choice.index for choice in reply.choices] == [0, 1]
    assert complete(house, ids).choices[0].text == expected[0]
    assert reply.usage.prompt_tokens == len(ids) + len(others)


def test_each_prompt_has_its_own_choices(house: Served) -> None:
    reply = complete(house, [TURN, "Count"], n=2, max_tokens=4)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    texts = [choice.text for choice in reply.choices]
    assert texts[0] == texts[1] != texts[2] == texts[3]
    assert reply.usage.prompt_tokens == len(ids_of(house, TURN)) + len(ids_of(house, "Count"))
    assert reply.usage.completion_tokens == 16


def test_a_stream_says_what_the_whole_answer_says(house: Served) -> None:
    async def streamed() -> list[Any]:
        async with house.async_client as client:
            stream = await client.completions.create(
                model="pocket",
                prompt=[TURN, TEXT],
                temperature=0,
                max_tokens=12,
                echo=True,
                logprobs=1,
                stream=True,
                stream_options={"include_usage": True},
            )
            return [chunk async for chunk in stream]

    *chunks, usage = asyncio.run(streamed())
    whole = complete(house, [TURN, TEXT], max_tokens=12, echo=True, logprobs=1)
    for index, expected in enumerate(whole.choices):
        own = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(choice.text for choice in own) == expected.text
        assert own[-1].finish_reason == expected.finish_reason
        scored = [choice.logprobs for choice in own if choice.logprobs]
        for name in ("tokens", "text_offset"):
            assert [value for one in scored for value in getattr(one, name)] == getattr(expected.logprobs, name)
        logprobs = [logprob for one in scored for logprob in one.token_logprobs]
        assert logprobs == pytest.approx(expected.logprobs.token_logprobs, abs=0.05)  # what is in the batch matters
    assert (usage.choices, usage.usage.completion_tokens) == ([], whole.usage.completion_tokens)


# --- echo and log-probabilities ---


def test_an_echo_is_the_prompt_before_the_answer(house: Served) -> None:
    assert (
        complete(house, TEXT, echo=True, max_tokens=1).choices[0].text
        == TEXT + complete(house, TEXT, max_tokens=1).choices[0].text
    )
    reply = complete(house, TEXT, echo=True, max_tokens=0)
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == (TEXT, "length")
    assert reply.usage.completion_tokens == 0


def test_logprobs_say_where_in_the_text_each_token_stands(house: Served) -> None:
    reply = complete(house, max_tokens=30, logprobs=3).choices[0]
    scores = reply.logprobs
    *tokens, end = scores.tokens  # the token that ended the answer shows nothing
    assert ("".join(tokens), end) == (reply.text, "")
    for token, offset in zip(tokens, scores.text_offset, strict=False):
        assert reply.text[offset:].startswith(token)
    for token, logprob, top in zip(scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True):
        assert top[token] == pytest.approx(logprob)
        assert 3 <= len(top) <= 4 or not token


def test_no_alternatives_are_the_token_alone(house: Served) -> None:
    scores = complete(house, TEXT, max_tokens=2, logprobs=0).choices[0].logprobs
    assert [set(top) for top in scores.top_logprobs] == [{token} for token in scores.tokens]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", ["text", "ids"])
def test_an_echo_scores_the_prompt_as_a_harness_reads_it(
    house: Served, engines: Served, reference: Any, engine: str, form: str
) -> None:
    """lm-eval's local-completions: context and continuation in one prompt, max_tokens 1, the last token cut off."""
    text = TURN + "The capital of France is Paris."
    ids = reference.encode(text)
    context = len(reference.encode(TURN))
    options: dict[str, Any] = {"echo": True, "max_tokens": 1}
    if "top_logprobs" in runtimes()[engine].features:
        options["logprobs"] = 1
    else:  # it has the alternatives of a prompt's tokens, but not of those it says
        options |= {"logprobs": 1, "max_tokens": 0}
    scores = complete(engines, ids if form == "ids" else text, engine, **options).choices[0].logprobs
    if options["max_tokens"]:
        scores.token_logprobs.pop()
        scores.top_logprobs.pop()
    rows = reference.logprobs(ids, 1)
    expected = [row[token] for row, token in zip(rows, ids[1:], strict=True)]
    assert scores.token_logprobs[0] is None
    assert scores.top_logprobs[0] is None
    assert sum(scores.token_logprobs[context:]) == pytest.approx(sum(expected[context - 1 :]), abs=0.2)
    assert scores.token_logprobs[1:] == pytest.approx(expected, abs=1.0)  # 8 bits
    greedy = [
        logprob == max(top.values())
        for logprob, top in zip(scores.token_logprobs[context:], scores.top_logprobs[context:], strict=True)
    ]
    assert all(greedy)


def test_a_character_in_several_tokens_is_written_by_its_bytes(house: Served) -> None:
    text = "say 🦊 now"
    scores = complete(house, text, echo=True, max_tokens=0, logprobs=0).choices[0].logprobs
    assert any(token.startswith("bytes:\\x") for token in scores.tokens)
    assert scores.text_offset[-1] == text.rindex(" now")


# --- refusals ---


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"suffix": "a"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [99_999_999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"model": "echo", "prompt": [256]}, "prompt"),
        ({"prompt": ["a"] * 100, "n": 2}, "prompt"),
        ({"n": 129}, "n"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"stream_options": {}}, "stream_options"),
        ({"prompt": "river stone " * 9000}, "prompt"),
    ],
)
@pytest.mark.parametrize("more", [{}, {"max_tokens": 0, "echo": True}])
def test_what_cannot_be_completed_is_refused_by_name(
    house: Served, change: dict[str, Any], param: str, more: dict[str, Any]
) -> None:
    body = {"model": "pocket", "prompt": "a"} | more | change
    reply = httpx.post(f"{house.root}/v1/completions", json=body, timeout=60)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


def test_best_of_one_is_what_everybody_gets(house: Served) -> None:
    assert complete(house, best_of=1).choices[0].text == complete(house).choices[0].text
