// Votes for the better answer, as pairs that `fader train vector --data` reads.

import { html, signal } from "./vendor/preact.js";
import { download, keep, kept } from "./kept.js";
import { textOf } from "./tokens.js";
import { columns, letterOf, said } from "./state.js";

export const votes = signal(kept("votes", []));

function put(found) {
  votes.value = found;
  if (!keep("votes", found)) said.value = "This browser keeps nothing: export the votes now.";
}

const answered = (column) => {
  const answer = column.answer.value;
  return answer?.status === "done" && textOf(answer.pieces).trim() ? answer : null;
};

// The other columns whose answers to the same question can be compared with this one's.
export function rivals(column) {
  const own = answered(column);
  if (!own) return [];
  return columns.value.filter((other) => {
    const answer = other !== column && answered(other);
    return (
      answer &&
      answer.question === own.question &&
      textOf(answer.pieces) !== textOf(own.pieces)
    );
  });
}

export function vote(column) {
  const own = answered(column);
  const pairs = rivals(column).map((other) => ({
    prompt: own.question,
    chosen: textOf(own.pieces).trim(),
    rejected: textOf(other.answer.value.pieces).trim(),
  }));
  const same = (a, b) => a.prompt === b.prompt && a.chosen === b.chosen && a.rejected === b.rejected;
  const swapped = (one) => ({ ...one, chosen: one.rejected, rejected: one.chosen });
  // a vote for the other answer takes the first one back
  const others = votes.value.filter(
    (old) => !pairs.some((pair) => same(old, pair) || same(old, swapped(pair))),
  );
  put([...others, ...pairs]);
  said.value = `Column ${letterOf(column)} is better: ${votes.value.length} votes are kept.`;
}

export const isVoted = (column) => {
  const own = answered(column);
  const others = own ? rivals(column) : [];
  return (
    others.length > 0 &&
    others.every((other) =>
      votes.value.some(
        (one) =>
          one.prompt === own.question &&
          one.chosen === textOf(own.pieces).trim() &&
          one.rejected === textOf(other.answer.value.pieces).trim(),
      ),
    )
  );
};

export const asJsonLines = (pairs) => pairs.map((one) => `${JSON.stringify(one)}\n`).join("");

const short = (text) => (text.length > 90 ? `${text.slice(0, 90)}…` : text);

export function Votes() {
  return html`<div class="votes">
    <p>
      Each vote says which of two answers was better. They are kept in this browser alone. Export
      them to make a vector of your own taste:${" "}
      <code>fader train vector mine --data votes.jsonl</code>
    </p>
    ${votes.value.length === 0
      ? html`<p class="hint">No votes yet. Ask, then choose “Better” under an answer.</p>`
      : html`<ul>
          ${votes.value.map(
            (one, i) =>
              html`<li key=${i}>
                <strong>${short(one.prompt)}</strong>
                <span class="better">${short(one.chosen)}</span>
                <span class="worse">${short(one.rejected)}</span>
                <button
                  type="button"
                  class="quiet"
                  aria-label=${`Take vote ${i + 1} back`}
                  onClick=${() => put(votes.value.filter((_, j) => j !== i))}
                >
                  ✕
                </button>
              </li>`,
          )}
        </ul>`}
    <div class="row">
      <button
        type="button"
        class="strong"
        disabled=${votes.value.length === 0}
        onClick=${() => download("votes.jsonl", asJsonLines(votes.value), "application/jsonl")}
      >
        Export as JSONL
      </button>
      <button
        type="button"
        disabled=${votes.value.length === 0}
        onClick=${() => confirm("Forget all votes?") && put([])}
      >
        Forget all
      </button>
    </div>
  </div>`;
}
