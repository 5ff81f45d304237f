"""`enginehouse run` and `enginehouse chat`: an answer on the standard output, and a conversation in the terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
from rich.console import Console

from enginehouse.config.schema import Config
from enginehouse.server.cli.client import Failed, Part, address, ask, connected, models, started

HELP = """/new            forget what was said
/system TEXT    how it is to answer, from now on; without TEXT: as it likes
/model NAME     another model goes on
/models         what there is
/retry          answer the last message again
/bye            leave; so do Ctrl+D, and Ctrl+C twice"""


def run(config: Config, file: str | None, model: str, words: list[str], **given: Any) -> None:
    """One answer, of the words and of what is piped in. Nothing but its text goes to stdout."""
    prompt = " ".join(words)
    if not sys.stdin.isatty():
        prompt = f"{prompt}\n\n{sys.stdin.read()}".strip()
    if not prompt:
        sys.exit("enginehouse: there is no prompt; write it behind the model's name, or pipe it in")
    at = address(config)
    with started(at, config, file), connected(at) as client:
        system = given.pop("system", None)
        messages = [{"role": "system", "content": system}] if system else []
        say(ask(client, model, [*messages, {"role": "user", "content": prompt}], **given), Console(stderr=True))


def chat(config: Config, file: str | None, model: str | None, system: str | None) -> None:
    with suppress(ImportError):  # there is none on Windows
        import readline  # noqa: F401  input() has a history then, and can be edited
    console, at = Console(stderr=True, highlight=False), address(config)
    with started(at, config, file), connected(at) as client:
        conversation = Conversation(client, model or models(client)[0]["id"], console, system)
        console.print(f"{conversation.model} at {at.root}; /help says what else can be typed here", style="dim")
        interrupted = False
        while True:
            try:
                line = input(">>> ").strip()
                if line in ("/bye", "/exit", "/quit"):
                    return
                interrupted = False
                conversation.take(line)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                if interrupted:
                    return
                interrupted = True
            except Failed as error:
                console.print(str(error), style="red")


class Conversation:
    def __init__(self, client: httpx.Client, model: str, console: Console, system: str | None) -> None:
        self._client, self.model, self._console, self._system = client, model, console, system
        self._said: list[dict[str, Any]] = []

    def take(self, line: str) -> None:
        """A message, or a command."""
        command, _, rest = line.partition(" ")
        if not line:
            return
        if not line.startswith("/"):
            self._ask([*self._said, {"role": "user", "content": line}])
        elif command == "/new":
            self._said = []
        elif command == "/system":
            self._system = rest or None
        elif command == "/model" and rest:
            names = [name for one in models(self._client) for name in (one["id"], *one["aliases"])]
            if rest not in names:
                raise Failed(f"there is no model '{rest}'; have: {', '.join(names)}")
            self.model = rest
        elif command == "/models":
            self._console.print("\n".join(one["id"] for one in models(self._client)))
        elif command == "/retry" and self._said:
            self._ask(self._said[:-1])
        else:
            self._console.print(HELP)

    def _ask(self, said: list[dict[str, Any]]) -> None:
        """What was said becomes part of the conversation when it is answered, though the answer be cut short."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        answer = Answer()
        try:
            say(answer.watched(ask(self._client, self.model, system + said)), self._console, figures=True)
        finally:
            if answer.text:
                self._said = [*said, {"role": "assistant", "content": answer.text}]


class Answer:
    def __init__(self) -> None:
        self.text = ""

    def watched(self, parts: Iterator[Part]) -> Iterator[Part]:
        for part in parts:
            self.text += part.text
            yield part


def say(parts: Iterator[Part], console: Console, figures: bool = False) -> None:
    """Prints an answer as it comes: its text to stdout; thoughts, calls and what the server notes to `console`."""
    began, first, usage = time.monotonic(), 0.0, dict[str, Any]()
    with console.status("") as status:
        for part in parts:
            if part.note:
                status.update(part.note)
                continue
            first = first or time.monotonic()
            usage = usage or part.usage
            status.stop()
            if shown := part.thought or part.call:
                console.print(shown, end="", style="dim", markup=False, soft_wrap=True)
            print(part.text, end="", flush=True)
    print()
    seconds = time.monotonic() - first
    if figures and first and usage:
        tokens, prompt = usage["completion_tokens"], usage["prompt_tokens"]
        kept = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
        speed = f", {(tokens - 1) / seconds:.1f} a second" if tokens > 1 and seconds > 0 else ""
        console.print(
            f"{tokens} tokens{speed}; the first after {first - began:.1f} s, {prompt} read, {kept} of them known",
            style="dim",
        )
