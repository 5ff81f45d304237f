// One chat completion as it streams: what was said so far, who says it, how quick.

import { call, good } from "./api.js";

const BROKEN = "the connection broke before the end of the answer";
const PLACED = /^x-enginehouse-(runtime|precision|device|reason): (.*)$/;

export class Reply {
  text = "";
  thought = "";
  calls = []; // {id, name, arguments}
  usage = null;
  finish = "";
  note = ""; // what the server says meanwhile, such as how far a build is
  served = {}; // runtime, precision, device, reason
  asked = performance.now();
  first = 0; // when its first token came
  last = 0;
  thoughtUntil = 0;

  get firstSeconds() {
    return this.first ? (this.first - this.asked) / 1000 : null;
  }

  // Tokens per second from the first on; null where there are too few to tell.
  get rate() {
    const tokens = this.usage?.completion_tokens ?? 0;
    return tokens > 1 && this.last > this.first ? ((tokens - 1) * 1000) / (this.last - this.first) : null;
  }

  get message() {
    const message = { role: "assistant", content: this.text };
    if (this.thought) message.reasoning_content = this.thought;
    if (this.calls.length) {
      message.tool_calls = this.calls.map(({ id, name, arguments: given }) => ({
        id,
        type: "function",
        function: { name, arguments: given },
      }));
    }
    return message;
  }
}

// Asks, and calls `changed` after each piece. What goes wrong is thrown, what came before stays in the reply.
export async function converse(body, reply, signal, changed) {
  const options = { include_usage: true, continuous_usage_stats: true };
  const answer = await good(
    await call("v1/chat/completions", { body: { ...body, stream: true, stream_options: options }, signal }),
  );
  for (const name of ["runtime", "precision", "device", "reason"]) {
    const value = answer.headers.get(`x-enginehouse-${name}`);
    if (value !== null) reply.served[name] = value;
  }
  let whole = false;
  for await (const line of lines(answer.body)) {
    if (line.startsWith(":")) remark(reply, line.slice(1).trim());
    else if (line.startsWith("data: {")) take(reply, JSON.parse(line.slice(6)));
    else whole ||= line === "data: [DONE]";
    changed();
  }
  if (!whole) throw new Error(BROKEN);
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch(broken);
    if (done) return;
    const whole = (rest + value).split("\n");
    rest = whole.pop();
    yield* whole;
  }
}

function broken(error) {
  if (error.name === "AbortError") throw error;
  throw new Error(BROKEN);
}

function remark(reply, text) {
  const [, name, value] = PLACED.exec(text) ?? [];
  if (name) reply.served[name] = value;
  else reply.note = text;
}

function take(reply, chunk) {
  if (chunk.error) throw new Error(chunk.error.message);
  if (chunk.usage) reply.usage = chunk.usage;
  for (const { delta, finish_reason: finish } of chunk.choices) {
    if (finish) reply.finish = finish;
    const { content, reasoning_content: thought, tool_calls: calls } = delta;
    if (!content && !thought && !calls) continue;
    reply.last = performance.now();
    reply.first ||= reply.last;
    reply.note = "";
    if (thought) {
      reply.thought += thought;
      reply.thoughtUntil = reply.last;
    }
    if (content) reply.text += content;
    for (const call of calls ?? []) addCall(reply.calls, call);
  }
}

function addCall(calls, { index, id, function: { name, arguments: piece } }) {
  calls[index] ??= { id, name: "", arguments: "" };
  calls[index].name += name ?? "";
  calls[index].arguments += piece ?? "";
}
