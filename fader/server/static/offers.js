// What the server offers: models, vectors, profiles, and every kind of guide, reward and search.

import { signal } from "./vendor/preact.js";
import { call } from "./api.js";
import { model } from "./state.js";

export const models = signal([]);
export const vectors = signal([]);
export const schema = signal(null); // of an alignment
export const serverProfiles = signal([]);

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
