"""smolagents: an agent that calls tools, a second run on top of the first.

`OpenAIServerModel(model_id="NAME", api_base="URL/v1", api_key="any")`
"""

import json
import sys

from smolagents import OpenAIServerModel, ToolCallingAgent, tool

CALL = "<tool_call>{}</tool_call>"  # what makes echo call a tool


@tool
def multiply(a: int, b: int) -> int:
    """Multiplies two numbers.

    Args:
        a: the one
        b: the other
    """
    return a * b


def observed() -> list[str]:
    return [step.observations for step in agent.memory.steps if getattr(step, "observations", None)]


model = OpenAIServerModel(model_id="agent", api_base=f"{sys.argv[1]}/v1", api_key="none")
agent = ToolCallingAgent(tools=[multiply], model=model, max_steps=2)  # the second reads what came of the first
asked = CALL.format(json.dumps({"name": "multiply", "arguments": {"a": 6, "b": 7}}))
agent.run(asked)
assert observed() == ["42"]
print("ok: a tool is called, and its result told")
agent.run(asked.replace("7", "8"), reset=False)
assert observed() == ["42", "48"]
print("ok: a second run goes on from the first")
