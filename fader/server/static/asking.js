// Requests, and how answers come into the columns. A column is a request of its own; all columns ask
// at the same time, so the server reads them in one batch.

import { signal } from "./vendor/preact.js";
import { call, frames, Refusal } from "./api.js";
import { idsOf, Pieces } from "./tokens.js";
import {
  addColumn,
  answersAgain,
  columns,
  letterOf,
  model,
  newColumn,
  question,
  said,
  sampling,
  seedLocked,
  selectedId,
  view,
} from "./state.js";

export const pruned = (alignment) => {
  const strengths = Object.entries(alignment.vectors ?? {}).filter(([, value]) => value !== 0);
  const found = { ...alignment, vectors: Object.fromEntries(strengths) };
  for (const [name, value] of Object.entries(found)) {
    if (value === null || (typeof value === "object" && !Object.keys(value).length)) {
      delete found[name];
    }
  }
  return found;
};

export const alignmentOf = (column) => pruned(column.alignment.value);

export function requestOf(column, alignment = alignmentOf(column)) {
  const messages = [{ role: "user", content: question.value }];
  if (column.fork.value) {
    messages.push({
      role: "assistant",
      continue: true,
      token_ids: idsOf(column.fork.value.pieces),
    });
  }
  const how = Object.fromEntries(
    Object.entries(sampling.value).filter(([, value]) => value !== null && value !== ""),
  );
  return { model: model.value, messages, ...how, alignment };
}

const timers = new Map();
const aborts = new Map();
const STREAMED = { stream: true, stream_options: { include_usage: true } };

export function stop(column) {
  aborts.get(column)?.abort();
}

export function ask(which = columns.value) {
  if (!question.value.trim()) return;
  if (!seedLocked.value) {
    sampling.value = { ...sampling.value, seed: Math.floor(Math.random() * 2 ** 31) };
  }
  said.value = "The models are answering.";
  for (const column of which) {
    if (column.fork.value && column.fork.value.question !== question.value) {
      column.fork.value = null;
    }
    askOne(column);
  }
}

async function askOne(column) {
  stop(column);
  notLater(column); // what it was waiting for is in this request
  const abort = new AbortController();
  aborts.set(column, abort);
  const request = requestOf(column);
  const body = { ...request, logprobs: true, top_logprobs: 8, ...STREAMED };
  const begun = column.fork.value?.pieces ?? [];
  const answer = {
    status: "running",
    question: question.value,
    asked: JSON.stringify(request),
    begun: begun.length,
    pieces: begun,
    seconds: null,
    speed: null,
    usage: null,
  };
  const put = (more) => {
    Object.assign(answer, more);
    if (aborts.get(column) === abort) column.answer.value = { ...answer };
  };
  put({});
  column.faults.value = [];
  try {
    await read(body, new Pieces(begun), put, abort.signal);
    if (aborts.get(column) === abort) said.value = `Column ${letterOf(column)} has answered.`;
  } catch (error) {
    if (error.name === "AbortError") put({ status: "stopped" });
    else if (aborts.get(column) === abort) {
      put({ status: "failed", message: error.message });
      column.faults.value = [faultOf(error)];
      said.value = `Column ${letterOf(column)}: ${error.message}`;
    }
  }
}

export async function read(body, pieces, put, abort) {
  const start = performance.now();
  let [first, written] = [null, 0];
  for await (const frame of frames("v1/chat/completions", body, abort)) {
    if (frame.usage) put({ usage: frame.usage, seed: frame.seed });
    const choice = frame.choices[0];
    if (!choice) continue;
    if (choice.finish_reason) put({ finish: choice.finish_reason });
    const tokens = choice.logprobs?.content ?? [];
    const text = choice.delta.content ?? "";
    if (!text && !tokens.length) continue;
    const now = performance.now();
    first ??= now;
    written += tokens.length;
    pieces.add(text, tokens);
    const after = (now - first) / 1000;
    put({
      pieces: pieces.shown,
      seconds: (first - start) / 1000,
      speed: written > 1 && after > 0 ? (written - 1) / after : null,
    });
  }
  pieces.end();
  put({ status: "done", pieces: pieces.pieces });
}

function faultOf(error) {
  const path = error instanceof Refusal ? (error.param ?? "") : "";
  const line = error.message.split("\n")[0];
  return { path, message: path && line.startsWith(`${path}: `) ? line.slice(path.length + 2) : line };
}

// A fork: what was written up to a token, another one in its place, and how the model goes on.
export function fork(column, at, token) {
  const pieces = column.answer.value.pieces.slice(0, at);
  const chosen = { text: token.token.includes("\ufffd") ? "" : token.token, tokens: [token] };
  const made = newColumn(
    `${column.name.value}, forked`,
    structuredClone(column.alignment.value),
  );
  made.fork.value = {
    question: column.answer.value.question,
    pieces: [...pieces, { ...chosen, forked: true }],
  };
  question.value = column.answer.value.question;
  addColumn(made);
  ask([made]);
}

// Edits. Each is checked by the server before it is asked again, so that faults are all shown at
// once and nothing runs in vain.

export function edit(column, change) {
  const copy = structuredClone(column.alignment.value);
  change(copy);
  column.alignment.value = copy;
  later(column);
}

export function editSampling(name, value) {
  sampling.value = { ...sampling.value, [name]: value };
  columns.value.forEach(later);
}

// Whether an answer is to another request than its column would make now.
export const isStale = (column) => {
  const answer = column.answer.value;
  return answer?.status === "done" && answer.asked !== JSON.stringify(requestOf(column));
};

export const pending = signal(0); // edits that are not checked yet

export function later(column) {
  if (!timers.has(column)) pending.value += 1;
  clearTimeout(timers.get(column));
  const check = () => {
    timers.delete(column);
    checked(column).finally(() => (pending.value -= 1));
  };
  timers.set(column, setTimeout(check, 300));
}

function notLater(column) {
  if (!timers.has(column)) return;
  clearTimeout(timers.get(column));
  timers.delete(column);
  pending.value -= 1;
}

async function checked(column) {
  const [body, before] = [requestOf(column), aborts.get(column)];
  if (!question.value.trim()) delete body.messages;
  let found;
  try {
    found = await call("POST", "v1/alignment/check", body);
  } catch (error) {
    column.faults.value = [faultOf(error)];
    return;
  }
  column.faults.value = found.faults;
  column.rows.value = found.rows ?? null;
  const asked = aborts.get(column) !== before; // meanwhile, with all that was checked
  const compared = view.value === "compare";
  if (compared && found.ok && answersAgain.value && column.answer.value && !asked) ask([column]);
}

export function removeColumn(column) {
  stop(column);
  notLater(column);
  columns.value = columns.value.filter((one) => one !== column);
  if (selectedId.value === column.id) selectedId.value = columns.value.at(-1).id;
}
