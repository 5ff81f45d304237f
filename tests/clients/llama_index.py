"""llama-index-llms-openai-like: chat, stream, tools, an agent, structured output, completions.

`OpenAILike(model="NAME", api_base="URL/v1", is_chat_model=True, is_function_calling_model=True)`
"""

import asyncio
import sys

import pydantic
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

FRANCE = "What is the capital of France?"
COUNT = "Count from 1 to 20."
OSLO = "What is the weather in Oslo?"
PARIS = "The capital of France is Paris."
NUMBERS = ", ".join(map(str, range(1, 21)))


class Person(pydantic.BaseModel):
    """A person"""

    name: str
    age: int
    city: str


def get_weather(city: str) -> str:
    """Current weather in a city"""
    assert city == "Oslo"
    return '{"sky": "sunny", "degrees": 20}'


def pocket(chat: bool = True) -> OpenAILike:
    return OpenAILike(
        model="pocket",
        api_base=f"{sys.argv[1]}/v1",
        api_key="none",
        temperature=0,
        max_tokens=200,
        max_retries=0,
        context_window=4096,
        is_chat_model=chat,
        is_function_calling_model=chat,
        should_use_structured_outputs=chat,
    )


model = pocket()
weather = FunctionTool.from_defaults(get_weather, description="Current weather in a city")

assert model.chat([ChatMessage(FRANCE)]).message.content == PARIS
print("ok: the capital of France")

pieces = [piece.delta for piece in model.stream_chat([ChatMessage(COUNT)])]
assert "".join(piece or "" for piece in pieces) == NUMBERS
assert len([piece for piece in pieces if piece]) > 1
print("ok: the answer is streamed")

(call,) = model.get_tool_calls_from_response(model.chat_with_tools([weather], OSLO))
assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Oslo"})
print("ok: a tool is called")


async def told() -> str:
    agent = FunctionAgent(tools=[weather], llm=model, system_prompt="You are a helpful assistant.")
    return str(await agent.run(OSLO))


assert asyncio.run(told()) == "The weather in Oslo is sunny, 20 degrees."
print("ok: an agent runs the tool and tells its result")

tara = PromptTemplate("As JSON: Tara is 38 years old and lives in Washington.")
assert model.structured_predict(Person, tara) == Person(name="Tara", age=38, city="Washington")
print("ok: output is structured")

completed = pocket(chat=False).complete(
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
assert completed.text == PARIS
print("ok: a text is completed")
