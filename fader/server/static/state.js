// What the page shows: its columns, and what they have in common.

import { computed, signal } from "./vendor/preact.js";
import { kept } from "./kept.js";

export const MOST_COLUMNS = 4;
export const RANGE = 1.5;
const LETTERS = "ABCD";

export const model = signal("");

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
