"""Thoughts that a client passes back without reading them: in text of a form that is nobody else's. It is no secret."""

import base64
import binascii

MARK = "enginehouse:"


def sealed(thought: str) -> str:
    return MARK + base64.b64encode(thought.encode()).decode()


def unsealed(text: str | None) -> str:
    """ "" where another server has sealed it: nothing of it can be read here."""
    if not text or not text.startswith(MARK):
        return ""
    try:
        return base64.b64decode(text.removeprefix(MARK), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
