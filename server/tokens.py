"""POST /tokenize and /detokenize, in the shapes of vLLM."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from runtimes.contract import Chat, Prompt, Refused, Text
from runtimes.pool import Pool
from server import body, openai, replies
from server.body import Whole
from server.openai import Message
from server.schema import Body, described
from server.tools import Tool, tool_fields
from server.waiting import placed_headers, unless_client_leaves

NEUTRAL: dict[str, tuple[Any, ...]] = {"add_generation_prompt": (True,), "return_token_strs": (False,)}


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A prompt, or messages as for a chat completion."""

    model: str
    prompt: str | None = None
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)] | None = None
    tools: list[Tool] = []
    chat_template_kwargs: dict[str, Any] = {}
    add_special_tokens: bool = True  # of a prompt; a chat template brings its own


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: str
    tokens: Annotated[list[Whole], msgspec.Meta(min_length=1)]


@post(
    ["/tokenize", "/v1/tokenize"],
    status_code=200,
    operation_class=described(replies.Tokens, Body(TokenizeRequest, neutral=NEUTRAL), placed=True),
)
async def tokenize(request: Request[Any, Any, State], state: State) -> Response[replies.Tokens]:
    """The token ids of a prompt, as an answer to it would begin."""
    fields = body.accepted(body.json_object(await body.read(request)), (), NEUTRAL)
    openai.check_parts(fields.get("messages"))
    asked = body.convert(fields, TokenizeRequest)
    pool: Pool = state.pool
    placed, ids = await unless_client_leaves(request, pool.tokenize(asked.model, prompt_of(asked)))
    context = pool.status(pool.resolve(asked.model))["context_length"]
    assert isinstance(context, int)
    return Response(replies.Tokens(ids, len(ids), context), headers=placed_headers(placed))


@post(
    ["/detokenize", "/v1/detokenize"],
    status_code=200,
    operation_class=described(replies.Prompt, Body(DetokenizeRequest), placed=True),
)
async def detokenize(request: Request[Any, Any, State], state: State) -> Response[replies.Prompt]:
    """The text of token ids; special tokens show none."""
    asked = body.parse(await body.read(request), DetokenizeRequest)
    pool: Pool = state.pool
    placed, text = await unless_client_leaves(request, pool.detokenize(asked.model, asked.tokens))
    return Response(replies.Prompt(text), headers=placed_headers(placed))


def prompt_of(asked: TokenizeRequest) -> Prompt:
    if (asked.prompt is None) == (asked.messages is None):
        raise Refused("send either 'prompt' or 'messages'", "prompt", "invalid_value")
    if asked.messages is None:
        return Text(asked.prompt or "", asked.add_special_tokens)
    openai.check_messages(asked.messages)
    messages = [openai.message_fields(message) for message in asked.messages]
    return Chat(messages, tool_fields(asked.tools), template_options=asked.chat_template_kwargs)
