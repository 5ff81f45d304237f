"""langchain-openai: chat, stream, tools there and back, structured output in three ways, embeddings, responses.

`ChatOpenAI(model="NAME", base_url="URL/v1", api_key="any")`; embeddings: `check_embedding_ctx_length=False`
"""

import sys

import pydantic
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

FRANCE = "What is the capital of France?"
COUNT = "Count from 1 to 20."
TARA = "As JSON: Tara is 38 years old and lives in Washington."
PARIS = "The capital of France is Paris."
NUMBERS = ", ".join(map(str, range(1, 21)))


class Person(pydantic.BaseModel):
    """A person"""

    name: str
    age: int
    city: str


@tool
def get_weather(city: str) -> str:
    """Current weather in a city"""
    assert city == "Oslo"
    return '{"sky": "sunny", "degrees": 20}'


url = f"{sys.argv[1]}/v1"
model = ChatOpenAI(model="pocket", base_url=url, api_key="none", temperature=0, max_retries=0)

reply = model.invoke([SystemMessage("You are a helpful assistant."), HumanMessage(FRANCE)])
assert reply.content == PARIS
assert reply.usage_metadata and reply.usage_metadata["output_tokens"] > 1
print("ok: the capital of France")

pieces = [str(chunk.content) for chunk in model.stream(COUNT)]
assert "".join(pieces) == NUMBERS
assert len([piece for piece in pieces if piece]) > 1
print("ok: the answer is streamed")

able = model.bind_tools([get_weather])
question = HumanMessage("What is the weather in Oslo?")
called = able.invoke([question])
results = [get_weather.invoke(call) for call in called.tool_calls]
assert able.invoke([question, called, *results]).content == "The weather in Oslo is sunny, 20 degrees."
whole = None
for chunk in able.stream([question]):
    whole = chunk if whole is None else whole + chunk
assert whole and [(call["name"], call["args"]) for call in whole.tool_calls] == [("get_weather", {"city": "Oslo"})]
print("ok: a tool is called, whole and streamed, and its result told")

for method in ("json_schema", "function_calling", "json_mode"):
    person = model.with_structured_output(Person, method=method).invoke(TARA)
    assert person == Person(name="Tara", age=38, city="Washington"), (method, person)
print("ok: output is structured by json_schema, function_calling and json_mode")

embeddings = OpenAIEmbeddings(model="pocket", base_url=url, api_key="none", check_embedding_ctx_length=False)
assert abs(sum(x * x for x in embeddings.embed_query("the sea")) - 1) < 1e-3
print("ok: a text is embedded")

responses = ChatOpenAI(
    model="pocket", base_url=url, api_key="none", temperature=0, max_retries=0, use_responses_api=True
)
assert responses.invoke(FRANCE).text == PARIS
assert "".join(chunk.text for chunk in responses.stream(FRANCE)) == PARIS
print("ok: responses are whole and streamed")
