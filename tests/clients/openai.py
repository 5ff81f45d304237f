"""openai: chat, stream, tools there and back, parsed output, embeddings, responses, errors by type.

`OpenAI(base_url="URL/v1", api_key="any")`
"""

import asyncio
import json
import sys
from typing import Any

import openai
import pydantic
from openai import AsyncOpenAI, OpenAI

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
COUNT: Any = [{"role": "user", "content": "Count from 1 to 20."}]
OSLO: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
TARA: Any = [{"role": "user", "content": "As JSON: Tara is 38 years old and lives in Washington."}]
PARIS = "The capital of France is Paris."
NUMBERS = ", ".join(map(str, range(1, 21)))


class GetWeather(pydantic.BaseModel):
    """Current weather in a city"""

    city: str


class Person(pydantic.BaseModel):
    name: str
    age: int
    city: str


url = f"{sys.argv[1]}/v1"
client = OpenAI(base_url=url, api_key="none", max_retries=0)
asked: Any = {"model": "pocket", "temperature": 0}
tools = [openai.pydantic_function_tool(GetWeather, name="get_weather")]

assert "pocket" in [model.id for model in client.models.list()]
print("ok: the models are listed")

reply = client.chat.completions.create(messages=FRANCE, **asked)
assert reply.choices[0].message.content == PARIS
print("ok: the capital of France")

chunks = list(
    client.chat.completions.create(messages=COUNT, stream=True, stream_options={"include_usage": True}, **asked)
)
pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
assert "".join(pieces) == NUMBERS
assert len([piece for piece in pieces if piece]) > 1
assert chunks[-1].usage and chunks[-1].usage.completion_tokens > 1
print("ok: the answer is streamed, its usage at the end")

message = client.chat.completions.create(messages=OSLO, tools=tools, **asked).choices[0].message
assert message.tool_calls
(call,) = message.tool_calls
assert call.type == "function"
assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
result = {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "sunny", "degrees": 20}'}
told = client.chat.completions.create(messages=[*OSLO, message, result], tools=tools, **asked)
assert told.choices[0].message.content == "The weather in Oslo is sunny, 20 degrees."
print("ok: a tool is called, and its result told")

with client.chat.completions.stream(messages=OSLO, tools=tools, **asked) as stream:
    (streamed,) = stream.get_final_completion().choices[0].message.tool_calls or []
assert streamed.function.parsed_arguments == GetWeather(city="Oslo")
print("ok: a call is streamed, its arguments parsed")

person = client.chat.completions.parse(messages=TARA, response_format=Person, **asked).choices[0].message.parsed
assert person == Person(name="Tara", age=38, city="Washington")
print("ok: an answer is parsed as a type")

vectors = client.embeddings.create(model="pocket", input=["the sea", "the sky"]).data
assert [abs(sum(x * x for x in vector.embedding) - 1) < 1e-3 for vector in vectors] == [True, True]
print("ok: texts are embedded")

response = client.responses.create(input=FRANCE, **asked)
assert response.output_text == PARIS
parsed = client.responses.parse(input=TARA, text_format=Person, **asked)
assert parsed.output_parsed == person
with client.responses.stream(input=FRANCE, **asked) as events:
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
assert "".join(deltas) == PARIS
print("ok: responses are whole, parsed and streamed")


async def both() -> list[str | None]:
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        replies = await asyncio.gather(*(client.chat.completions.create(messages=FRANCE, **asked) for _ in range(2)))
        return [reply.choices[0].message.content for reply in replies]


assert asyncio.run(both()) == [PARIS, PARIS]
print("ok: two are answered at once")

try:
    client.chat.completions.create(messages=FRANCE, **asked | {"model": "nobody"})
    raise AssertionError("an unknown model answered")
except openai.NotFoundError as error:
    assert "nobody" in error.message
try:
    client.chat.completions.create(messages=FRANCE, **asked | {"temperature": -1})
    raise AssertionError("a wrong temperature was taken")
except openai.BadRequestError as error:
    assert error.param == "temperature"
print("ok: errors have their types")
