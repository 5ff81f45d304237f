"""`functions` and `function_call`, which tools came after: a request with them is one with tools, its answers in their
old shape."""

from typing import Any

from enginehouse.runtimes.errors import Refused

Fields = dict[str, Any]


def with_calls(messages: list[Fields]) -> list[Fields]:
    """Messages as chat templates take them: a function's result is that of the last call of its name."""
    out, calls = list[Fields](), dict[str, str]()  # ids by function
    for index, message in enumerate(messages):
        message = dict(message)
        if function := message.pop("function_call", None):
            id = calls[function["name"]] = f"call_{index}"
            message["tool_calls"] = [{"id": id, "type": "function", "function": function}]
        if message["role"] == "function":
            where = f"messages[{index}].name"
            if message.get("name") not in calls:
                raise Refused(f"'{where}': no call before it is of '{message.get('name')}'", where, "invalid_value")
            message |= {"role": "tool", "tool_call_id": calls[message["name"]]}
        out.append(message)
    return out


def named(error: Refused) -> Refused:
    """As this request calls it what tools are refused for."""
    param = (error.param or "").replace("tools", "functions").replace("].function", "]")
    message = error.message.replace("tools[", "functions[").replace("].function", "]")
    return Refused(message, param.replace("tool_choice.function", "function_call") or None, error.code)


def delta(name: str, arguments: str) -> Fields:
    return {"function_call": {"name": name, "arguments": arguments} if name else {"arguments": arguments}}


def finish(reason: str) -> str:
    return "function_call" if reason == "tool_calls" else reason
