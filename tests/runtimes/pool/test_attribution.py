"""Lines by which clients are billed are taken off the head of a prompt, and nothing else is."""

from typing import Any

import pytest

from enginehouse.runtimes.contract import Chat
from enginehouse.runtimes.pool.attribution import without_attribution

LINE = "x-anthropic-billing-header: cc_version=2.1.332.1c9; cc_entrypoint=sdk-cli;"
USER = {"role": "user", "content": f"{LINE}\nwhat is this?"}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("content", "left"),
    [
        (f"{LINE}\nBe brief.", "Be brief."),
        (f"{LINE}\n\n\nBe brief.\n{LINE}", f"Be brief.\n{LINE}"),
        (f"Be brief.\n{LINE}", f"Be brief.\n{LINE}"),
        ([part(LINE), part("Be brief.")], [part("Be brief.")]),
        ([part(f"{LINE}\nBe brief."), part("And kind.")], [part("Be brief."), part("And kind.")]),
        ([part("Be brief."), part(LINE)], [part("Be brief."), part(LINE)]),
    ],
)
def test_only_the_first_line_of_a_system_prompt_is_taken(content: Any, left: Any) -> None:
    for role in ("system", "developer"):
        stable = without_attribution(Chat([{"role": role, "content": content}, USER]))
        assert isinstance(stable, Chat)
        assert stable.messages == [{"role": role, "content": left}, USER]


def test_a_system_prompt_that_is_nothing_else_is_left_out() -> None:
    stable = without_attribution(Chat([{"role": "system", "content": LINE}, USER]))
    assert isinstance(stable, Chat) and stable.messages == [USER]


def test_what_a_user_says_is_left_alone() -> None:
    prompt = Chat([USER])
    assert without_attribution(prompt) is prompt
