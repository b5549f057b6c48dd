// Talks to the server. Everything is relative to the page, so that a proxy may put both elsewhere.

import { signal } from "./vendor/preact.js";

// Kept for this tab alone: a key in localStorage would outlive the visit.
export const key = signal(sessionStorage.getItem("fader-key") ?? "");
export const keyWanted = signal(false);

export function setKey(text) {
  key.value = text.trim();
  sessionStorage.setItem("fader-key", key.value);
  keyWanted.value = false;
}

// An error as the server tells it: `param` is the path of the field.
export class Refusal extends Error {
  constructor(message, param = null, status = 0) {
    super(message);
    this.param = param;
    this.status = status;
  }
}

function refusal(body, status, after) {
  const error = body?.error;
  if (!error) return new Refusal(`The server answered with status ${status}.`, null, status);
  const wait = after ? ` Try again in ${after} s.` : "";
  return new Refusal(error.message + wait, error.param, status);
}

async function send(method, path, body, abort) {
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  if (key.value) headers.Authorization = `Bearer ${key.value}`;
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: abort,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server cannot be reached. Does `fader serve` still run?");
  }
  if (response.ok) return response;
  if (response.status === 401) keyWanted.value = true;
  const said = await response.json().catch(() => null);
  throw refusal(said, response.status, response.headers.get("Retry-After"));
}

export async function call(method, path, body, abort) {
  return (await send(method, path, body, abort)).json();
}

// The frames of a streamed answer, as they come. Raises `Refusal`, also in the middle.
export async function* frames(path, body, abort) {
  const response = await send("POST", path, body, abort);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Refusal("The answer broke off.");
    const events = (left + value).split("\n\n");
    left = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue; // a comment that keeps the stream alive
      if (event === "data: [DONE]") return;
      const frame = JSON.parse(event.slice(6));
      if (frame.error) throw refusal(frame, response.status);
      yield frame;
    }
  }
}
