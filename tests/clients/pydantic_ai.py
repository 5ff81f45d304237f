"""pydantic-ai-slim: agents that answer, stream, run tools, give objects in three ways; over chat and responses.

`OpenAIProvider(base_url="URL/v1", api_key="any")`
"""

import asyncio
import sys

import pydantic
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

FRANCE = "What is the capital of France?"
COUNT = "Count from 1 to 20."
OSLO = "What is the weather in Oslo?"
TARA = "As JSON: Tara is 38 years old and lives in Washington."
PARIS = "The capital of France is Paris."
NUMBERS = ", ".join(map(str, range(1, 21)))


class Person(pydantic.BaseModel):
    """A person"""

    name: str
    age: int
    city: str


def get_weather(city: str) -> dict[str, str | int]:
    """Current weather in a city"""
    assert city == "Oslo"
    return {"sky": "sunny", "degrees": 20}


provider = OpenAIProvider(base_url=f"{sys.argv[1]}/v1", api_key="none")
greedy = {"temperature": 0.0}

for model in (OpenAIChatModel("pocket", provider=provider), OpenAIResponsesModel("pocket", provider=provider)):
    way = type(model).__name__
    assert Agent(model, model_settings=greedy).run_sync(FRANCE).output == PARIS
    print(f"ok: the capital of France ({way})")

    told = Agent(model, tools=[get_weather], model_settings=greedy).run_sync(OSLO).output
    assert told == "The weather in Oslo is sunny, 20 degrees."
    print(f"ok: a tool is run, and its result told ({way})")

    for kind in (ToolOutput, NativeOutput, PromptedOutput):
        made = Agent(model, output_type=kind(Person), model_settings=greedy).run_sync(TARA).output
        assert made == Person(name="Tara", age=38, city="Washington"), (kind, made)
        print(f"ok: output is structured, {kind.__name__} ({way})")

    async def streamed(model: OpenAIChatModel | OpenAIResponsesModel = model) -> list[str]:
        async with Agent(model, model_settings=greedy).run_stream(COUNT) as run:
            return [piece async for piece in run.stream_text(delta=True, debounce_by=None)]

    pieces = asyncio.run(streamed())
    assert "".join(pieces) == NUMBERS
    assert len(pieces) > 1
    print(f"ok: the answer is streamed ({way})")
