"""ollama: chat, stream, thoughts, tools there and back, format, generate, embed, list, show, ps, pull, errors.

`ollama.Client(host="URL")`, or `OLLAMA_HOST=URL`
"""

import sys

import ollama

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]
PARIS = "The capital of France is Paris."
COUNT = [{"role": "user", "content": "Count from 1 to 20."}]
NUMBERS = ", ".join(map(str, range(1, 21)))
TARA = "As JSON: Tara is 38 years old and lives in Washington."
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}},
    "required": ["name", "age", "city"],
}
GREEDY = {"temperature": 0, "num_ctx": 2048}


def get_weather(city: str) -> str:
    """Current weather in a city

    Args:
        city: the city
    """
    assert city == "Oslo"
    return '{"sky": "sunny", "degrees": 20}'


client = ollama.Client(host=sys.argv[1])

assert [one.status for one in client.pull("pocket", stream=True)][-1] == "success"
assert client.pull("pocket").status == "success"
print("ok: a model is pulled")

reply = client.chat("pocket", FRANCE, options=GREEDY)
assert reply.message.content == PARIS
assert (reply.done, reply.done_reason) == (True, "stop")
assert reply.prompt_eval_count and reply.eval_count
assert reply.total_duration and reply.prompt_eval_duration and reply.eval_duration
assert reply.total_duration >= reply.prompt_eval_duration + reply.eval_duration
print("ok: the capital of France, with what it took")

chunks = list(client.chat("pocket", COUNT, stream=True, options=GREEDY))
assert "".join(chunk.message.content for chunk in chunks) == NUMBERS
assert len([chunk for chunk in chunks if chunk.message.content]) > 1
assert [chunk.done for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
print("ok: the answer is streamed")

short = client.chat("pocket", COUNT, options=GREEDY | {"num_predict": 3})
assert (short.done_reason, short.eval_count) == ("length", 3)
print("ok: num_predict cuts an answer")

thoughtful = client.chat("pocket", FRANCE, think=True, options=GREEDY)
assert thoughtful.message.thinking
assert thoughtful.message.content == PARIS
assert not client.chat("pocket", FRANCE, think=False, options=GREEDY).message.thinking
print("ok: thoughts come apart")

question = {"role": "user", "content": "What is the weather in Oslo?"}
called = client.chat("pocket", [question], tools=[get_weather], options=GREEDY).message
(call,) = called.tool_calls
assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Oslo"})
result = {"role": "tool", "tool_name": "get_weather", "content": get_weather(**call.function.arguments)}
told = client.chat("pocket", [question, called, result], tools=[get_weather], options=GREEDY)
assert told.message.content == "The weather in Oslo is sunny, 20 degrees."
streamed = [
    call.function
    for chunk in client.chat("pocket", [question], tools=[get_weather], stream=True, options=GREEDY)
    for call in chunk.message.tool_calls or ()
]
assert [(function.name, function.arguments) for function in streamed] == [("get_weather", {"city": "Oslo"})]
print("ok: a tool is called, whole and streamed, and its result told")

for form in (PERSON, "json"):
    said = client.generate("pocket", TARA, format=form, options=GREEDY).response
    assert said == '{"name": "Tara", "age": 38, "city": "Washington"}', said
print("ok: output keeps to a schema, and is JSON")

pieces = list(client.generate("pocket", FRANCE[0]["content"], stream=True, options=GREEDY))
assert "".join(piece.response for piece in pieces) == PARIS
assert client.generate("pocket", keep_alive="5m").done_reason == "load"
print("ok: text is generated, and a model loaded")

vectors = client.embed("pocket", ["the sea", "the sky"])
assert len(vectors.embeddings) == 2
for vector in (*vectors.embeddings, client.embeddings("pocket", "the sea").embedding):
    assert abs(sum(x * x for x in vector) - 1) < 1e-3
print("ok: texts are embedded")

(listed,) = (model for model in client.list().models if model.model == "pocket:latest")
assert listed.size and listed.digest and listed.details.family == "qwen3"
shown = client.show("pocket")
assert {"completion", "tools", "thinking", "embedding"} <= set(shown.capabilities)
assert shown.modelinfo["qwen3.context_length"] == 4096
assert "pocket:latest" in [model.model for model in client.ps().models]
print("ok: models are listed, shown, and seen running")

for ask, status in (
    (lambda: client.chat("nobody", FRANCE), 404),
    (lambda: client.chat("pocket", FRANCE, options={"temperature": -1}), 400),
    (lambda: client.pull("nobody"), 404),
    (lambda: client.delete("pocket"), 501),
    (lambda: client.copy("pocket", "other"), 501),
):
    try:
        ask()
    except ollama.ResponseError as error:
        assert error.status_code == status, error
    else:
        raise AssertionError(status)
print("ok: errors have their status")
