"""A conversation as chat templates take it, built from what other dialects call items and blocks."""

from typing import Any, Literal

from enginehouse.runtimes.errors import Refused

Role = Literal["system", "user", "assistant"]


class Conversation:
    """Messages in the shape of `Chat.messages`."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._calls: set[str] = set()
        self._head: list[str] = []  # texts of the system message that stands first

    def say(self, role: Role, text: str) -> None:
        """System messages at the beginning become one: both dialects have several places for them, and most templates
        take one alone."""
        if role == "assistant":
            self._assistant("content")["content"] = text
        elif role == "system" and len(self.messages) == bool(self._head):
            self._head.append(text)
            self.messages[:] = [{"role": "system", "content": text}]
        else:
            self.messages.append({"role": role, "content": text})

    def think(self, text: str) -> None:
        self._assistant("reasoning_content", "content", "tool_calls")["reasoning_content"] = text

    def call(self, id: str, name: str, arguments: str) -> None:
        """A call the assistant made; `arguments` is JSON text."""
        self._calls.add(id)
        calls = self._assistant().setdefault("tool_calls", [])
        calls.append({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})

    def result(self, call: str, text: str, param: str) -> None:
        if call not in self._calls:
            raise Refused(f"'{param}': no tool call before it has the id '{call}'", param, "invalid_value")
        self.messages.append({"role": "tool", "tool_call_id": call, "content": text})

    def asked(self) -> list[dict[str, Any]]:
        """All messages that say something to answer or to go on from."""
        if self._head:
            self.messages[0]["content"] = "\n\n".join(self._head)
        return without_empty_answer(self.messages)

    def _assistant(self, *taken: str) -> dict[str, Any]:
        """The message that the assistant is in the middle of, unless it has one of these parts already."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant" or last.keys() & set(taken):
            self.messages.append({"role": "assistant"})
        return self.messages[-1]


def missing(what: str) -> str:
    """Stands in a tool's result for what no model here can see: a client goes on, and its model knows."""
    return f"[{what} stood here, and is left out: this model reads text alone]"


def without_empty_answer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An answer that was begun with nothing is no answer yet: clients end with one to say whose turn it is."""
    last = messages[-1]
    says = any(last.get(part) for part in ("content", "tool_calls", "reasoning_content"))
    return messages if last["role"] != "assistant" or says or len(messages) == 1 else messages[:-1]
