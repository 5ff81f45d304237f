"""A job as the body of one streaming POST, in the words that servers of OpenAI's API have in common."""

import re
import uuid
from typing import Any

import msgspec

from enginehouse.runtimes.contract import (
    EVERYTHING,
    JSON_OBJECT,
    NEUTRAL,
    Chat,
    Constraint,
    Grammar,
    Ids,
    Job,
    JsonSchema,
    Regex,
    Text,
)
from enginehouse.runtimes.errors import Refused
from enginehouse.runtimes.tool_calls.parser import ToolParser
from enginehouse.runtimes.upstream import parsing

# Beside those that engines have: text completions, further variables for the chat template, going on from the
# assistant's own last message, and usage in each chunk.
FURTHER = ("completions", "chat_template_kwargs", "continue_final_message", "continuous_usage")
KNOWN = (*(one for one in EVERYTHING if one not in ("stop", "constraint", "prompt_logprobs")), *FURTHER)
OPENAI = (
    *("max_tokens", "temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "logit_bias"),
    *("logprobs", "top_logprobs", "tools", "json_schema"),
)
LOCAL = ("top_k", "min_p", "ignore_eos", "completions", "chat_template_kwargs")
# By the `owned_by` of /v1/models. From memory, not tried against these servers: `upstream.features` has the last word.
FAMILIES: dict[str, tuple[str, ...]] = {
    "vllm": (
        *OPENAI,
        *LOCAL,
        *("repetition_penalty", "min_tokens", "stop_token_ids", "regex", "grammar"),
        *("continue_final_message", "continuous_usage"),
    ),
    "sglang": (*OPENAI, *LOCAL, "repetition_penalty", "min_tokens", "stop_token_ids"),
    "llamacpp": (*OPENAI, *LOCAL),
}
# Sent also where they ask for nothing: servers have defaults of their own.
ALWAYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
PLAIN = (*ALWAYS, "max_tokens", "min_tokens", "ignore_eos", "seed", "frequency_penalty", "presence_penalty")
# What other dialects put into every request for the templates that know it: where nobody hears it, nothing is lost.
WISHES = {"enable_thinking", "thinking", "reasoning_effort"}
UUID_DIGITS = 32
DIGITS = re.compile(r"[0-9a-f]{16,32}")
Needs = list[tuple[str, str]]


def needs(job: Job) -> Needs:
    """Each feature that the upstream must have for this, and the field that asks for it."""
    found = job.needs()
    if job.counted:
        found.append(("continuous_usage", "stream_options"))
    if not isinstance(job.prompt, Chat):
        return [*found, ("completions", "prompt"), *([("echo", "echo")] if job.echo else [])]
    if job.prompt.template_options.keys() - WISHES:
        found.append(("chat_template_kwargs", "chat_template_kwargs"))
    if job.prompt.ending == "none" or goes_on(job.prompt):
        found.append(("continue_final_message", "messages"))
    return found


def goes_on(chat: Chat) -> bool:
    """Whether the answer continues the assistant's own last message."""
    last = chat.messages[-1]
    return chat.ending == "auto" and last["role"] == "assistant" and not last.get("tool_calls")


def check(job: Job) -> None:
    """Raises Refused for what OpenAI's API has no words for, whoever listens."""
    if job.sampling.max_tokens == 0:
        raise Refused("an upstream says one token at least; 'max_tokens' is 1 or more", "max_tokens", "invalid_value")
    if isinstance(job.prompt, Text | Ids) and job.sampling.logprobs is not None:
        raise Refused("'logprobs' of a text completion are not to be had of an upstream", "logprobs")
    if isinstance(job.prompt, Text) and not job.prompt.special:
        raise Refused("an upstream puts special tokens before a text itself", "add_special_tokens")


def body_of(job: Job, model: str, features: tuple[str, ...], parser: ToolParser | None = None) -> tuple[str, bytes]:
    """The path and what is sent there. `parser`: of what it leaves in its text."""
    sampling = job.sampling
    fields: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    if job.counted:
        fields["stream_options"]["continuous_usage_stats"] = True
    for name in PLAIN:
        value = getattr(sampling, name)
        if name in features and (name in ALWAYS or value != getattr(NEUTRAL, name)):
            fields[name] = value
    if fields.get("top_k") == 0:
        fields["top_k"] = -1  # no limit, in every server's words
    if sampling.stop:
        fields["stop"] = sampling.stop
    if sampling.stop_token_ids:
        fields["stop_token_ids"] = sampling.stop_token_ids
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.prediction:
        fields["prediction"] = {"type": "content", "content": sampling.prediction}
    if sampling.constraint:
        fields |= constraint_fields(sampling.constraint)
    match job.prompt:
        case Chat():
            if sampling.logprobs is not None:
                fields |= {"logprobs": True, "top_logprobs": sampling.logprobs}
            chat = chat_fields(parsing.chat_for(job.prompt, parser) if parser else job.prompt, features)
            if parser:
                chat.pop("tool_choice", None)  # a server that reads no calls may refuse the word
            return "/chat/completions", msgspec.json.encode(fields | chat)
        case Text(text):
            return "/completions", msgspec.json.encode(fields | {"prompt": text})
        case Ids(ids):
            return "/completions", msgspec.json.encode(fields | {"prompt": ids})


def request_id(job: str) -> str:
    """A UUID, for there are servers that refuse any other: the digits of the job's id, so that both logs have them."""
    digits = re.sub("^[a-z]+[-_]", "", job).replace("-", "")
    if not DIGITS.fullmatch(digits):
        return str(uuid.uuid5(uuid.NAMESPACE_OID, job))
    return str(uuid.UUID(hex=digits.ljust(UUID_DIGITS, "0")))


def chat_fields(chat: Chat, features: tuple[str, ...]) -> dict[str, Any]:
    fields: dict[str, Any] = {"messages": chat.messages}
    if chat.tools:
        fields["tools"] = chat.tools
        if chat.call_name:
            fields["tool_choice"] = {"type": "function", "function": {"name": chat.call_name}}
        else:
            fields["tool_choice"] = "required" if chat.call_required else "auto"
        if not chat.parallel_calls:
            fields["parallel_tool_calls"] = False
    if chat.template_options and "chat_template_kwargs" in features:
        fields["chat_template_kwargs"] = chat.template_options
    if chat.effort:
        fields["reasoning_effort"] = chat.effort
    if goes_on(chat):
        fields |= {"continue_final_message": True, "add_generation_prompt": False}
    elif chat.ending == "none":
        fields["add_generation_prompt"] = False
    return fields


def constraint_fields(constraint: Constraint) -> dict[str, Any]:
    match constraint:
        case JsonSchema() if constraint == JSON_OBJECT:
            return {"response_format": {"type": "json_object"}}
        case JsonSchema(schema):
            named = {"name": "answer", "schema": msgspec.Raw(schema.encode()), "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        case Regex(pattern):
            return {"structured_outputs": {"regex": pattern}}
        case Grammar(text):
            return {"structured_outputs": {"grammar": text}}
    raise AssertionError("the structure of tool calls is made by workers alone")
