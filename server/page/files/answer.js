// A reply as it is shown: thoughts folded, code in blocks, calls, figures. Whatever it says is text.

import { element, say } from "./element.js";
import { number, rate, seconds } from "./units.js";

const FENCE = /^ {0,3}```(\S*)[^\n]*$/;

export function makeAnswer() {
  const thought = element("p", { class: "prose" });
  const summary = element("summary");
  const thoughts = element("details", { class: "thoughts", hidden: true }, summary, thought);
  const prose = element("div", { class: "prose" });
  const calls = element("div");
  const note = element("p", { class: "note", hidden: true });
  const figures = element("p", { class: "aside figures" });
  const node = element("div", { class: "answer" }, thoughts, prose, calls, note, figures);

  function paint(reply) {
    thoughts.hidden = !reply.thought;
    const thinks = reply.thought && !reply.text && !reply.calls.length;
    summary.textContent = thinks ? "Thinking…" : `Thought for ${seconds((reply.thoughtUntil - reply.first) / 1000)}`;
    write(thought, reply.thought);
    writeProse(prose, reply.text);
    calls.replaceChildren(...reply.calls.map(shownCall));
    note.hidden = !reply.note;
    write(note, reply.note);
    write(figures, told(reply));
  }
  return { node, paint };
}

function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function shownCall({ name, arguments: given }) {
  return element("pre", { class: "call", tabindex: "0" }, element("strong", {}, name), ` ${given}`);
}

// Tokens, speed, and who said it.
export function told(reply) {
  const { usage, served } = reply;
  const who = [served.runtime, served.device, served.precision].filter(Boolean).join(" / ");
  return [
    usage && `${number(usage.prompt_tokens)} + ${number(usage.completion_tokens)} tokens`,
    reply.rate && rate(reply.rate),
    reply.first && `first after ${seconds(reply.firstSeconds)}`,
    who,
    reply.finish === "length" && "cut off at the length limit",
  ]
    .filter(Boolean)
    .join(" · ");
}

// Text with its fenced blocks; only what changed since the last time is written.
function writeProse(node, text) {
  const pieces = piecesOf(text);
  pieces.forEach((piece, place) => {
    const there = node.children[place];
    if (!there || there.dataset.kind !== piece.kind) {
      const made = piece.kind === "code" ? block() : element("p", { "data-kind": "text" });
      if (there) there.replaceWith(made);
      else node.append(made);
    }
    const target = node.children[place];
    write(piece.kind === "code" ? target.querySelector("code") : target, piece.text);
  });
  while (node.children.length > pieces.length) node.lastChild.remove();
}

function block() {
  const code = element("code");
  const copy = element(
    "button",
    { type: "button", class: "quiet copy", onclick: () => copyText(code.textContent) },
    "Copy",
  );
  return element("div", { class: "code", "data-kind": "code" }, element("pre", { tabindex: "0" }, code), copy);
}

function piecesOf(text) {
  const pieces = [];
  let inside = false;
  let lines = [];
  const end = () => {
    const joined = lines.join("\n");
    if (inside || joined.trim()) pieces.push({ kind: inside ? "code" : "text", text: inside ? joined : joined.trim() });
    lines = [];
  };
  for (const line of text.split("\n")) {
    if (FENCE.test(line)) {
      end();
      inside = !inside;
    } else lines.push(line);
  }
  end();
  return pieces;
}

export async function copyText(text) {
  const copied = navigator.clipboard ? navigator.clipboard.writeText(text).then(() => true) : copySelected(text);
  say((await Promise.resolve(copied).catch(() => false)) ? "copied" : "the browser does not let this page copy");
}

// Where the page was not fetched over HTTPS or from this machine, browsers have no clipboard for it.
function copySelected(text) {
  const field = element("textarea", { class: "unseen", "aria-hidden": "true" });
  field.value = text;
  document.body.append(field);
  field.select();
  const copied = document.execCommand("copy");
  field.remove();
  return copied;
}
