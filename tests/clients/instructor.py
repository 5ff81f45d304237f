"""instructor: objects by tools, by JSON schema and by JSON, in part as they come, several at once, asynchronously.

`instructor.from_openai(OpenAI(base_url="URL/v1", api_key="any"))`
"""

import asyncio
import sys
from typing import Any

import instructor
import pydantic
from openai import AsyncOpenAI, OpenAI

TARA: Any = [{"role": "user", "content": "As JSON: Tara is 38 years old and lives in Washington."}]


class Person(pydantic.BaseModel):
    name: str
    age: int
    city: str


url = f"{sys.argv[1]}/v1"
tara = {"name": "Tara", "age": 38, "city": "Washington"}
asked: Any = {"model": "pocket", "temperature": 0, "messages": TARA, "max_retries": 0}

for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON):
    client = instructor.from_openai(OpenAI(base_url=url, api_key="none", max_retries=0), mode=mode)
    made = client.create(response_model=Person, **asked)
    assert made.model_dump() == tara, (mode, made)
    print(f"ok: an object is made, mode {mode.value}")

client = instructor.from_openai(OpenAI(base_url=url, api_key="none", max_retries=0), mode=instructor.Mode.JSON_SCHEMA)
grown = list(client.create_partial(response_model=Person, **asked))
assert len(grown) > 1
assert grown[-1].model_dump() == tara
print("ok: an object is there in part as it comes")


async def made_at_once() -> list[dict[str, Any]]:
    client = instructor.from_openai(AsyncOpenAI(base_url=url, api_key="none", max_retries=0))
    made = await asyncio.gather(*(client.create(response_model=Person, **asked) for _ in range(2)))
    return [person.model_dump() for person in made]


assert asyncio.run(made_at_once()) == [tara, tara]
print("ok: two are made at once")
