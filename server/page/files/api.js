// The server, by its public API alone.

import { askForKey, key } from "./key.js";

export const root = new URL(".", document.baseURI).href.replace(/\/$/, "");

// What the server refused, in its words.
export class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

let declined = false; // nobody is asked for a key again until something is wanted

// The response, whatever its status but 401: then a key is asked for, and it is tried again. `quiet`: not by a person.
export async function call(path, { body, signal, quiet = false } = {}) {
  for (;;) {
    const sent = key();
    const answer = await send(path, body, signal, sent);
    if (answer.status !== 401) return answer;
    const why = await sentence(answer);
    if (key() !== sent) continue; // another was given meanwhile
    if ((quiet && declined) || !(await askForKey(why))) {
      declined = true;
      throw new Refused(why, 401);
    }
    declined = false;
  }
}

async function send(path, body, signal, sent) {
  const headers = sent ? { authorization: `Bearer ${sent}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  try {
    const text = body === undefined ? undefined : JSON.stringify(body);
    return await fetch(`${root}/${path}`, { method, headers, body: text, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(`no server answers at ${root}`);
  }
}

export async function json(path, options) {
  return (await good(await call(path, options))).json();
}

export async function text(path, options) {
  return (await good(await call(path, options))).text();
}

// The response, if it is none of a failure.
export async function good(answer) {
  if (!answer.ok) throw new Refused(await sentence(answer), answer.status);
  return answer;
}

async function sentence(answer) {
  const said = await answer.text();
  try {
    const { error } = JSON.parse(said);
    return typeof error === "string" ? error : error.message;
  } catch {
    return `the server answered ${answer.status}, and no reason`;
  }
}

// A model's part of a path: its name may hold slashes.
export function named(model) {
  return model.split("/").map(encodeURIComponent).join("/");
}
