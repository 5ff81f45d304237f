"""The free text that a custom tool takes: to a model it is the one string of a function's arguments."""

import json
import re

HEAD = re.compile(r'\s*\{\s*"input"\s*:\s*"')
# As far as they are whole: an emoji is two escapes.
LETTERS = re.compile(
    r'(?:[^"\\]|\\["\\/bfnrt]|\\u(?!d[89a-f])[0-9a-f]{4}|\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2})*', re.IGNORECASE
)


class CustomInput:
    """The text as its JSON comes in pieces, each letter once."""

    def __init__(self) -> None:
        self.letters = 0  # that came so far
        self._held, self._begun = "", False

    def feed(self, piece: str) -> str:
        self._held += piece
        if not self._begun:
            if not (head := HEAD.match(self._held)):
                return ""
            self._held, self._begun = self._held[head.end() :], True
        whole = LETTERS.match(self._held)
        assert whole
        self._held = self._held[whole.end() :]
        text = str(json.loads(f'"{whole[0]}"', strict=False))
        self.letters += len(text)
        return text


def free_arguments(text: str) -> str:
    """A custom call of the history, as the function call that it was to the model."""
    return json.dumps({"input": text}, ensure_ascii=False)


def free_input(arguments: str) -> str:
    """The text of a custom tool's call: as far as it came where it was cut off, and all of it in another form."""
    try:
        text = json.loads(arguments, strict=False)["input"]
    except ValueError:
        return CustomInput().feed(arguments) or arguments
    except (KeyError, TypeError):
        return arguments
    return text if isinstance(text, str) else arguments
