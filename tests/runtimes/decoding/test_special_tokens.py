"""Texts cut at special tokens."""

from hypothesis import given
from hypothesis import strategies as st

from enginehouse.runtimes.decoding.special_tokens import any_of, parts

SPECIAL = ("<s>", "<s>more", "<|end|>", "</s>")


@given(st.lists(st.sampled_from([*SPECIAL, "<", "a", "more", "é"])).map("".join), st.integers(1, 3))
def test_a_text_is_cut_before_special_tokens_and_nothing_is_lost(text: str, most: int) -> None:
    cut = list(parts(text, SPECIAL, most))
    assert "".join(cut) == text
    assert all(len(any_of(SPECIAL).findall(part)) <= most for part in cut)
    assert all(any_of(SPECIAL).match(part) for part in cut[1:])


@given(st.lists(st.sampled_from([*SPECIAL, "<", "a", "more"])).map("".join))
def test_the_longest_special_token_is_found(text: str) -> None:
    longest = sorted(SPECIAL, key=len, reverse=True)
    found, at = [], 0
    while at < len(text):
        token = next((token for token in longest if text.startswith(token, at)), "")
        found += [token] if token else []
        at += len(token) or 1
    assert any_of(SPECIAL).findall(text) == found
