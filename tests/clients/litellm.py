"""litellm: chat, stream, tools, structured output, embeddings, text completion, Anthropic's dialect, errors by type.

`model="hosted_vllm/NAME"`, `api_base="URL/v1"`, `api_key="any"`
"""

import asyncio
import json
import sys
from typing import Any

import litellm
import pydantic

FRANCE: Any = [{"role": "user", "content": "What is the capital of France?"}]
COUNT: Any = [{"role": "user", "content": "Count from 1 to 20."}]
OSLO: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
TARA: Any = [{"role": "user", "content": "As JSON: Tara is 38 years old and lives in Washington."}]
PARIS = "The capital of France is Paris."
NUMBERS = ", ".join(map(str, range(1, 21)))
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Person(pydantic.BaseModel):
    name: str
    age: int
    city: str


litellm.suppress_debug_info = True
url = f"{sys.argv[1]}/v1"
place: Any = {"model": "hosted_vllm/pocket", "api_base": url, "api_key": "none"}
asked = place | {"temperature": 0, "max_tokens": 200, "max_retries": 0}

for model in ("hosted_vllm/pocket", "openai/pocket"):
    assert litellm.completion(messages=FRANCE, **asked | {"model": model}).choices[0].message.content == PARIS
print("ok: the capital of France, as hosted_vllm/ and as openai/")

pieces = [chunk.choices[0].delta.content for chunk in litellm.completion(messages=COUNT, stream=True, **asked)]
assert "".join(piece or "" for piece in pieces) == NUMBERS
assert len([piece for piece in pieces if piece]) > 1
print("ok: the answer is streamed")

for stream in (False, True):
    reply = litellm.completion(messages=OSLO, tools=[WEATHER], stream=stream, **asked)
    whole = litellm.stream_chunk_builder(list(reply), messages=OSLO) if stream else reply
    (call,) = whole.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
print("ok: a tool is called, whole and streamed")

content = litellm.completion(messages=TARA, response_format=Person, **asked).choices[0].message.content
assert Person.model_validate_json(content) == Person(name="Tara", age=38, city="Washington")
print("ok: output is structured")

reply = asyncio.run(litellm.acompletion(messages=FRANCE, reasoning_effort="high", **asked))
assert reply.choices[0].message.content == PARIS
assert "Paris" in reply.choices[0].message.reasoning_content
print("ok: a thought is told from the answer")

(vector,) = litellm.embedding(input=["the sea"], encoding_format="float", **place).data
assert abs(sum(x * x for x in vector["embedding"]) - 1) < 1e-3
print("ok: a text is embedded")

dialect = asked | {"model": "anthropic/pocket", "api_base": sys.argv[1]}
assert litellm.completion(messages=FRANCE, **dialect).choices[0].message.content == PARIS
(call,) = litellm.completion(messages=OSLO, tools=[WEATHER], **dialect).choices[0].message.tool_calls
assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Oslo"})
print("ok: Anthropic's dialect answers and calls")

prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
completed = litellm.text_completion(prompt=prompt, **asked | {"model": "text-completion-openai/pocket"})
assert completed.choices[0].text == PARIS
print("ok: a text is completed")

try:
    litellm.completion(messages=FRANCE, **asked | {"model": "hosted_vllm/nobody"})
    raise AssertionError("an unknown model answered")
except litellm.NotFoundError as error:
    assert "nobody" in error.message
try:
    litellm.completion(messages=[{"role": "user", "content": "a " * 9000}], **asked)
    raise AssertionError("a prompt longer than the context was taken")
except litellm.ContextWindowExceededError:
    pass
print("ok: errors have their types")
