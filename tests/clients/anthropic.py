"""anthropic: messages, stream, tools run by the client, parsed output, thoughts, counts, errors by type.

`Anthropic(base_url="URL", api_key="any")`
"""

import sys
from typing import Any

import anthropic
import pydantic

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
COUNT: Any = [{"role": "user", "content": "Count from 1 to 20."}]
OSLO: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
TARA: Any = [{"role": "user", "content": "As JSON: Tara is 38 years old and lives in Washington."}]
PARIS = "The capital of France is Paris."
NUMBERS = ", ".join(map(str, range(1, 21)))


class Person(pydantic.BaseModel):
    name: str
    age: int
    city: str


@anthropic.beta_tool
def get_weather(city: str) -> str:
    """Current weather in a city"""
    assert city == "Oslo"
    return '{"sky": "sunny", "degrees": 20}'


client = anthropic.Anthropic(base_url=sys.argv[1], api_key="none", max_retries=0)
asked: Any = {"model": "pocket", "max_tokens": 200, "extra_body": {"temperature": 0}}

reply = client.messages.create(messages=FRANCE, **asked)
assert [block.text for block in reply.content if block.type == "text"] == [PARIS]
assert reply.stop_reason == "end_turn"
print("ok: the capital of France")

with client.messages.stream(messages=COUNT, **asked) as stream:
    pieces = list(stream.text_stream)
    usage = stream.get_final_message().usage
assert "".join(pieces) == NUMBERS
assert len(pieces) > 1
assert usage.output_tokens > 1
print("ok: the answer is streamed, its usage at the end")

ran = client.beta.messages.tool_runner(messages=OSLO, tools=[get_weather], **asked).until_done()
assert [block.text for block in ran.content if block.type == "text"] == ["The weather in Oslo is sunny, 20 degrees."]
print("ok: a tool is run, and its result told")

parsed = client.messages.parse(messages=TARA, output_format=Person, **asked)
assert parsed.parsed_output == Person(name="Tara", age=38, city="Washington")
print("ok: an answer is parsed as a type")

asked_to_think = asked | {"max_tokens": 2000, "thinking": {"type": "enabled", "budget_tokens": 1024}}
thought = client.messages.create(messages=FRANCE, **asked_to_think)
assert [block.type for block in thought.content] == ["thinking", "text"]
print("ok: a thought is told from the answer")

counted = client.messages.count_tokens(model="pocket", messages=FRANCE)
used = reply.usage
assert counted.input_tokens == used.input_tokens + (used.cache_read_input_tokens or 0)
print("ok: tokens are counted as they are used")

try:
    client.messages.create(messages=FRANCE, **asked | {"model": "nobody"})
    raise AssertionError("an unknown model answered")
except anthropic.NotFoundError as error:
    assert "nobody" in error.message
print("ok: errors have their types")
