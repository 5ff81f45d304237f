"""llm-ollama: finds the models by itself; answers, whole and streamed, with a schema, with tools; embeds.

`OLLAMA_HOST=URL`
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FRANCE = "What is the capital of France?"
PARIS = "The capital of France is Paris."
WEATHER = '''
def get_weather(city: str) -> dict:
    """Current weather in a city"""
    return {"sky": "sunny", "degrees": 20}
'''

home = tempfile.TemporaryDirectory()


def llm(*arguments: str) -> str:
    command = [Path(sys.executable).with_name("llm"), *arguments]
    environment = os.environ | {"LLM_USER_PATH": home.name, "OLLAMA_HOST": sys.argv[1]}
    ran = subprocess.run(
        command, env=environment, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    )
    return ran.stdout.strip()


def ask(*arguments: str) -> str:
    return llm("-m", "pocket", "-o", "temperature", "0", *arguments)


assert "pocket:latest" in llm("ollama", "models")
print("ok: the models are found")

assert ask(FRANCE) == PARIS
assert ask("--no-stream", FRANCE) == PARIS
print("ok: the capital of France, streamed and whole")

person = json.loads(ask("--schema", "name, age int, city", "As JSON: Tara is 38 years old and lives in Washington."))
assert person == {"name": "Tara", "age": 38, "city": "Washington"}
print("ok: output keeps to a schema")

assert ask("--functions", WEATHER, "What is the weather in Oslo?") == "The weather in Oslo is sunny, 20 degrees."
print("ok: a tool is run, and its result told")

vector = json.loads(llm("embed", "-m", "pocket", "-c", "the sea"))
assert abs(sum(x * x for x in vector) - 1) < 1e-3
print("ok: a text is embedded")
