"""POST /tokenize and /detokenize, in the shapes of vLLM."""

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, post
from litestar.datastructures import State

from enginehouse.runtimes.contract import Chat, Prompt, Text
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.pool.explanation import Loaded
from enginehouse.runtimes.pool.pool import Pool
from enginehouse.server import body
from enginehouse.server.api import openai_types
from enginehouse.server.api.chat import protocol
from enginehouse.server.api.chat.protocol import Message
from enginehouse.server.api.tools import Tool, check_tools, tool_fields
from enginehouse.server.body import Whole
from enginehouse.server.keepalive import assigned_headers, unless_client_leaves
from enginehouse.server.limits import MESSAGES, check_json
from enginehouse.server.openapi import Body, described

NEUTRAL: dict[str, tuple[Any, ...]] = {"return_token_strs": (False,)}


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A prompt, or messages as for a chat completion."""

    model: str
    prompt: str | None = None
    messages: Annotated[list[Message], msgspec.Meta(min_length=1, max_length=MESSAGES)] | None = None
    tools: list[Tool] = []
    chat_template_kwargs: dict[str, Any] = {}
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    add_special_tokens: bool = True  # of a prompt; a chat template brings its own


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    model: str
    tokens: Annotated[list[Whole], msgspec.Meta(min_length=1)]


@post(
    ["/tokenize", "/v1/tokenize"],
    status_code=200,
    operation_class=described(openai_types.Tokens, Body(TokenizeRequest, neutral=NEUTRAL), assigned=True),
)
async def tokenize(request: Request[Any, Any, State], state: State) -> Response[openai_types.Tokens]:
    """The token ids of a prompt, as an answer to it would begin."""
    asked = await body.read_as(request, read)
    pool: Pool = state.pool
    assigned, ids = await unless_client_leaves(request, pool.tokenize(asked.model, prompt_of(asked)))
    status = pool.status(pool.resolve(asked.model))
    assert isinstance(status, Loaded)
    return Response(openai_types.Tokens(ids, len(ids), status.context_length), headers=assigned_headers(assigned))


@post(
    ["/detokenize", "/v1/detokenize"],
    status_code=200,
    operation_class=described(openai_types.Prompt, Body(DetokenizeRequest), assigned=True),
)
async def detokenize(request: Request[Any, Any, State], state: State) -> Response[openai_types.Prompt]:
    """The text of token ids; special tokens show none."""
    asked = await body.read_as(request, lambda sent: body.parse(sent, DetokenizeRequest))
    pool: Pool = state.pool
    assigned, text = await unless_client_leaves(request, pool.detokenize(asked.model, asked.tokens))
    return Response(openai_types.Prompt(text), headers=assigned_headers(assigned))


def read(sent: bytes) -> TokenizeRequest:
    return body.parse(sent, TokenizeRequest, (), NEUTRAL, protocol.check_kinds)


def prompt_of(asked: TokenizeRequest) -> Prompt:
    if (asked.prompt is None) == (asked.messages is None):
        raise Refused("send either 'prompt' or 'messages'", "prompt", "invalid_value")
    if asked.messages is None:
        return Text(asked.prompt or "", asked.add_special_tokens)
    protocol.check_messages(asked.messages)
    check_tools(asked.tools)
    check_json(asked.chat_template_kwargs, "chat_template_kwargs")
    return Chat(
        protocol.conversation(asked.messages),
        tool_fields(asked.tools),
        template_options=asked.chat_template_kwargs,
        ending=protocol.ending_of(asked.messages, asked.continue_final_message, asked.add_generation_prompt),
    )
