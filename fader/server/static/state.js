// What the page knows, and how answers come into it. A column is a request of its own; all columns
// ask at the same time, so the server reads them in one batch.

import { computed, signal } from "./vendor/preact.js";
import { call, frames, Refusal } from "./api.js";
import { kept } from "./kept.js";
import { idsOf, Pieces } from "./tokens.js";

export const MOST_COLUMNS = 4;
export const RANGE = 1.5;
export const LETTERS = "ABCD";

export const model = signal("");
export const models = signal([]);
export const vectors = signal([]);
export const schema = signal(null);
export const serverProfiles = signal([]);

export const question = signal("");
export const sampling = signal({
  temperature: 0.7,
  top_p: 0.95,
  max_tokens: 80,
  repetition_penalty: 1.1,
  seed: 1,
});
export const seedLocked = signal(true);
export const answersAgain = signal(true);
export const view = signal("compare"); // or "sweep"
export const shows = signal("guides"); // or "differences"
export const said = signal(""); // what a screen reader is told

export const theme = signal(kept("theme", "")); // light, dark, or as the system
const system = matchMedia("(prefers-color-scheme: dark)");
export const dark = signal(system.matches);
system.addEventListener("change", () => (dark.value = system.matches));

let made = 0;

export function newColumn(name = "", alignment = {}) {
  return {
    id: ++made,
    name: signal(name),
    alignment: signal(alignment),
    fork: signal(null), // {question, pieces}: the beginning of an answer that is gone on from
    answer: signal(null),
    faults: signal([]),
    rows: signal(null),
  };
}

export const columns = signal([newColumn("Base model"), newColumn("Your mix")]);
export const selectedId = signal(columns.value[1].id);
export const selected = computed(
  () => columns.value.find((column) => column.id === selectedId.value) ?? columns.value[0],
);
export const isBase = (column) => column === columns.value[0];
export const letterOf = (column) => LETTERS[columns.value.indexOf(column)] ?? "";
export const running = computed(() =>
  columns.value.some((column) => column.answer.value?.status === "running"),
);

export function addColumn(column) {
  columns.value = [...columns.value, column];
  selectedId.value = column.id;
}

export function removeColumn(column) {
  stop(column);
  notLater(column);
  columns.value = columns.value.filter((one) => one !== column);
  if (selectedId.value === column.id) selectedId.value = columns.value.at(-1).id;
}

// Faults. The server names a field in a union by its kind too, as in `guides[0].contrast.weight`;
// the page's fields leave it out.

export function pathOf(fault) {
  const found = schema.value;
  if (!found) return fault.path ?? "";
  const kinds = new Set(
    Object.values(found.$defs).flatMap((one) => one.properties?.kind?.const ?? []),
  );
  const parts = (fault.path ?? "").split(".");
  return parts
    .filter((part, i) => !(kinds.has(part) && i && /(\]|^search)$/.test(parts[i - 1])))
    .join(".");
}

export const faultsUnder = (path) =>
  selected.value.faults.value.filter((fault) => {
    const at = pathOf(fault);
    return at === path || (at.startsWith(path) && ".[".includes(at[path.length]));
  });

// Requests

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

// Which of the model's means cannot be used here, and why: asked by dry runs.

export const refused = signal({ vectors: {}, guides: {}, rewards: {}, preferences: "" });

export async function learn() {
  const [list, found, shape, kept] = await Promise.all([
    call("GET", "v1/models"),
    call("GET", "v1/vectors"),
    call("GET", "v1/alignment/schema"),
    call("GET", "v1/profiles"),
  ]);
  models.value = list.data.filter((one) => !one.parent).map((one) => one.id);
  if (!models.value.includes(model.value)) model.value = models.value[0];
  vectors.value = found.data;
  serverProfiles.value = kept.data;
  schema.value = shape;
  await learnWhatWorks();
}

async function faultsOf(alignment) {
  const body = { model: model.value, alignment, temperature: 0.7, max_tokens: 8 };
  return (await call("POST", "v1/alignment/check", body)).faults;
}

export async function learnWhatWorks() {
  const why = { vectors: {}, guides: {}, rewards: {}, preferences: "" };
  const names = vectors.value.map((one) => one.name);
  for (const fault of await faultsOf({ vectors: Object.fromEntries(names.map((n) => [n, 1])) })) {
    why.vectors[fault.path.replace("alignment.vectors.", "")] = fault.message;
  }
  refused.value = { ...why };
  const tries = [
    ...kindsOf("guides").map((kind) => ["guides", kind, { guides: [example(kind)] }]),
    ...kindsOf("rewards").map((kind) => {
      const rewards = [example(kind)];
      return ["rewards", kind, { search: { kind: "best-of-n", n: 2, rewards } }];
    }),
  ];
  const found = await Promise.all(tries.map(([, , alignment]) => faultsOf(alignment)));
  tries.forEach(([group, kind], i) => {
    if (found[i].length) why[group][kind] = found[i][0].message;
  });
  const told = await faultsOf({ preferences: { user: ["Be brief."] } });
  why.preferences = told.find((one) => one.path.startsWith("alignment.pref"))?.message ?? "";
  refused.value = why;
}

// The schema's parts

export function resolve(part) {
  if (!part.$ref) return part;
  const { $ref, ...own } = part;
  return { ...schema.value.$defs[$ref.split("/").at(-1)], ...own };
}

const unionOf = (group) => {
  const found = schema.value;
  if (group === "guides") return found.properties.guides.items;
  if (group === "search") return found.properties.search.anyOf[0];
  return found.$defs.BestOfN.properties.rewards.items;
};

export const kindsOf = (group) => Object.keys(unionOf(group).discriminator.mapping);

export const schemaOf = (group, kind) =>
  resolve({ $ref: unionOf(group).discriminator.mapping[kind] });

// A guide or reward of that kind to begin with: something that can be tried at once.
export function example(kind) {
  const usable = vectors.value.map((one) => one.name).filter((n) => !refused.value.vectors[n]);
  const one = usable.length ? { [usable.includes("formal") ? "formal" : usable[0]]: 1 } : {};
  const begun = {
    contrast: { principle: "Answer like a pirate." },
    realign: { aligned: { vectors: one } },
    mix: {
      components: [
        { policy: { vectors: one }, weight: 0.5 },
        { policy: { vectors: {} }, weight: 0.5 },
      ],
    },
    personalized: { principle: "I like short answers.", vectors: one },
    proxy: { tuned: model.value, untuned: model.value },
    ratio: { policy: { preferences: { user: ["Answer in one sentence."] } } },
    keywords: { words: ["sea"] },
    forbidden: { words: ["sorry"] },
    length: { at_most: 30 },
    regex: { pattern: "\\?$" },
    "json-schema": { of: { type: "object" } },
    similarity: { to: "The sea is wide and calm." },
    classifier: { model: "name" },
    judge: { judge: "name", criterion: "Is it friendly?" },
    python: { name: "name" },
    implicit: { policy: { vectors: one } },
  };
  return { kind, ...begun[kind] };
}
