"""llm: answers at the command line, whole and streamed, with a schema, with tools; a conversation goes on.

In `extra-openai-models.yaml`: `model_id`, `model_name: NAME`, `api_base: URL/v1`,
`supports_tools: true`, `supports_schema: true`
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
MODEL = """
- model_id: pocket
  model_name: pocket
  api_base: {url}/v1
  supports_tools: true
  supports_schema: true
"""
WEATHER = '''
def get_weather(city: str) -> dict:
    """Current weather in a city"""
    return {"sky": "sunny", "degrees": 20}
'''

home = tempfile.TemporaryDirectory()
Path(home.name, "extra-openai-models.yaml").write_text(MODEL.format(url=sys.argv[1]))


def llm(*arguments: str) -> str:
    command = [Path(sys.executable).with_name("llm"), "-m", "pocket", "-o", "temperature", "0", *arguments]
    environment = os.environ | {"LLM_USER_PATH": home.name, "OPENAI_API_KEY": "none"}
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


assert llm(FRANCE) == PARIS
print("ok: the capital of France, streamed")

assert llm("--no-stream", FRANCE) == PARIS
print("ok: the capital of France, whole")

person = json.loads(llm("--schema", "name, age int, city", "As JSON: Tara is 38 years old and lives in Washington."))
assert person == {"name": "Tara", "age": 38, "city": "Washington"}
print("ok: output keeps to a schema")

assert llm("--functions", WEATHER, "What is the weather in Oslo?") == "The weather in Oslo is sunny, 20 degrees."
print("ok: a tool is run, and its result told")

llm("Call me Maria.")
assert llm("--continue", "What is my name?") == "Your name is Maria."
print("ok: a conversation goes on")
