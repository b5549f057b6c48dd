// One column: an answer as it comes, its tokens, what it took, and what can be done with it.

import { html, useEffect, useLayoutEffect, useRef, useState } from "./vendor/preact.js";
import { copiesOf } from "./copies.js";
import { keep, kept } from "./kept.js";
import { addedTo, differences, textOf } from "./tokens.js";
import { isVoted, rivals, vote } from "./votes.js";
import { alignmentOf, fork, isStale, removeColumn, stop } from "./asking.js";
import { columns, isBase, letterOf, MOST_COLUMNS, said, selectedId, shows } from "./state.js";

const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

// An alignment in a few words.
export function summary(alignment) {
  const parts = Object.entries(alignment.vectors ?? {}).map(
    ([name, strength]) => `${name} ${strength > 0 ? "+" : "−"}${Math.abs(strength)}`,
  );
  const told = ["provider", "user", "facts"].flatMap((name) => alignment.preferences?.[name] ?? []);
  if (told.length) parts.push(count(told.length, "preference"));
  for (const guide of alignment.guides ?? []) parts.push(guide.principle ?? guide.kind);
  if (alignment.search) parts.push(alignment.search.kind);
  return parts.join(" · ");
}

const probability = (logprob) => {
  const share = Math.exp(logprob);
  return share < 0.001 ? "<0.1%" : `${(share * 100).toFixed(1)}%`;
};
// A token by its text, or by its number where that shows nothing.
const spelled = (token) =>
  /^\p{Cc}+$|\ufffd/u.test(token.token.replaceAll("\n", "")) ? `#${token.id}` : token.token;
const shown = (text) => text.trim() || text.replaceAll("\n", "⏎").replaceAll(" ", "␣") || "end";

// What guides did to a token, in words. They are named by their place and kind, as `0:contrast`.
const guidesOf = (token) =>
  [
    `Without guides: ${probability(token.fader.base)}.`,
    ...Object.entries(token.fader.guides).map(([name, added]) => {
      const [place, kind] = name.split(":");
      const guide = kind ? `Guide ${Number(place) + 1} (${kind})` : name;
      return `${guide} added ${added.toFixed(2)} nats.`;
    }),
  ].join(" ");

// How strongly a piece is coloured: five steps each way.
function tint(piece) {
  const added = addedTo(piece);
  if (Math.abs(added) < 0.1) return "";
  const step = Math.min(5, Math.ceil(Math.abs(added) / 0.5));
  return added > 0 ? ` more-${step}` : ` less-${step}`;
}

// The answer. It is read as one text; with the keyboard, arrows move from token to token.
function Answer({ column, answer, onToken, at }) {
  const [cursor, setCursor] = useState(null);
  const pieces = answer.pieces;
  const usable = answer.status !== "running";
  const step = (event) => {
    const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity };
    if (event.key in moves && pieces.length) {
      event.preventDefault();
      const to = cursor === null ? 0 : cursor + moves[event.key];
      const next = Math.max(0, Math.min(pieces.length - 1, to));
      setCursor(next);
      const [token] = pieces[next].tokens;
      said.value = `${shown(pieces[next].text)}${token ? `, ${probability(token.logprob)}` : ""}`;
    } else if ((event.key === "Enter" || event.key === " ") && cursor !== null) {
      event.preventDefault();
      onToken(cursor);
    }
  };
  const one = (piece, i) => {
    const name = `token${tint(piece)}${piece.forked ? " forked" : ""}${i < answer.begun ? " begun" : ""}`;
    const here = i === at ? " open" : i === cursor ? " cursor" : "";
    return html`<span
      key=${i}
      class=${name + here}
      onClick=${() => usable && piece.tokens.length && onToken(i)}
      >${piece.text || (piece.tokens.length ? "▪" : "")}</span
    >`;
  };
  return html`<div
    class=${`answer ${usable ? "usable" : ""}`}
    role="group"
    tabindex="0"
    aria-label=${`Answer ${letterOf(column)}. Arrow keys move through its tokens, Enter opens one.`}
    onKeyDown=${step}
    onBlur=${() => setCursor(null)}
  >
    ${pieces.map(one)}${answer.status === "running" && html`<span class="caret"></span>`}
  </div>`;
}

function Differences({ column, answer }) {
  const base = columns.value[0].answer.value;
  const parts = differences(base ? textOf(base.pieces) : "", textOf(answer.pieces));
  const tags = { same: "span", new: "ins", gone: "del" };
  return html`<div class="answer" role="group" aria-label=${`Answer ${letterOf(column)}, compared`}>
    ${parts.map((part, i) => html`<${tags[part.kind]} key=${i}>${part.text}<//>`)}
  </div>`;
}

// A token's alternatives, each of which the answer can go on from.
function Token({ column, answer, at, onClose }) {
  const panel = useRef(null);
  useLayoutEffect(() => panel.current?.focus(), [at]);
  const piece = answer.pieces[at];
  const token = piece?.tokens[0];
  if (!token) return null;
  const full = columns.value.length >= MOST_COLUMNS;
  const guides = Object.entries(token.fader?.guides ?? {});
  const rows = token.top_logprobs.some((one) => one.id === token.id)
    ? token.top_logprobs
    : [...token.top_logprobs, token];
  const close = (event) => event.key === "Escape" && onClose();
  return html`<section
    class="alternatives"
    aria-label=${`Token ${shown(spelled(token))}`}
    tabindex="-1"
    ref=${panel}
    onKeyDown=${close}
  >
    <div class="row">
      <h3>Instead of <code>${shown(spelled(token))}</code></h3>
      <button type="button" class="quiet" aria-label="Close" onClick=${onClose}>✕</button>
    </div>
    ${guides.length > 0 &&
    html`<p class="hint">${guidesOf(token)}</p>`}
    <ol>
      ${rows.map(
        (one) =>
          html`<li key=${one.id}>
            <code>${shown(spelled(one))}</code>
            <span class="bar" style=${{ "--share": Math.exp(one.logprob) }}></span>
            <span>${probability(one.logprob)}</span>
            ${one.id === token.id
              ? html`<span class="hint">written</span>`
              : html`<button
                  type="button"
                  disabled=${full}
                  aria-label=${`Go on from ${shown(spelled(one))}`}
                  onClick=${() => {
                    onClose();
                    fork(column, at, one);
                  }}
                >
                  Go on
                </button>`}
          </li>`,
      )}
    </ol>
    ${full && html`<p class="hint">Four columns are shown: close one to go on from another token.</p>`}
  </section>`;
}

function Stats({ answer }) {
  const used = answer.usage?.alignment;
  const rewards = (used?.rewards ?? []).filter((one) => one !== null);
  const facts = [
    ["First token", answer.seconds === null ? "–" : `${answer.seconds.toFixed(1)} s`],
    ["Speed", answer.speed === null ? "–" : `${answer.speed.toFixed(1)} tokens/s`],
    ["Rows", used ? used.rows : "–"],
    ...(rewards.length ? [["Reward", rewards.map((one) => one.toFixed(2)).join(", ")]] : []),
  ];
  return html`<dl class="stats">
    ${facts.map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${value}</dd></div>`)}
  </dl>`;
}

// The request as curl, Python and YAML, to be copied.
function Copy({ column, onClose }) {
  const [form, setForm] = useState(kept("copied-as", "curl"));
  const [done, setDone] = useState("");
  const copies = copiesOf(column);
  const name = form in copies ? form : "curl";
  const choose = (one) => {
    keep("copied-as", one);
    setForm(one);
    setDone("");
  };
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(copies[name]);
      setDone("Copied.");
    } catch {
      setDone("The browser does not allow it: select the text and copy it.");
    }
  };
  return html`<section class="copies" aria-label="The request, to be copied">
    <div class="row">
      <div class="tabs" role="group" aria-label="As">
        ${Object.keys(copies).map(
          (one) =>
            html`<button
              type="button"
              aria-pressed=${one === name}
              onClick=${() => choose(one)}
            >
              ${one}
            </button>`,
        )}
      </div>
      <button type="button" onClick=${copy}>Copy</button>
      <button type="button" class="quiet" aria-label="Close" onClick=${onClose}>✕</button>
    </div>
    <pre tabindex="0">${copies[name]}</pre>
    <p class="hint" role="status">${done}</p>
  </section>`;
}

export function Column({ column }) {
  const answer = column.answer.value;
  const [at, setAt] = useState(null);
  const [copying, setCopying] = useState(false);
  useEffect(() => {
    if (answer?.status === "running") setAt(null);
  }, [answer?.status]);
  const letter = letterOf(column);
  const chosen = selectedId.value === column.id;
  const told = isBase(column)
    ? "nothing is changed"
    : summary(alignmentOf(column)) || "nothing is changed yet: move a slider";
  const others = rivals(column).length;
  const compared = shows.value === "differences" && !isBase(column) && columns.value[0].answer.value;
  const place = useRef(null);
  useEffect(() => {
    // on a phone the columns stand in a strip: the one that is mixed is brought into sight
    if (chosen) place.current.parentElement.scrollLeft = place.current.offsetLeft - 12;
  }, [chosen]);
  return html`<article
    ref=${place}
    class=${`column ${chosen ? "chosen" : ""}`}
    aria-label=${`Column ${letter}: ${column.name.value}`}
  >
    <header>
      <span class=${`letter of-${letter}`} aria-hidden="true">${letter}</span>
      <h2>${column.name}</h2>
      ${answer?.status === "running" &&
      html`<button type="button" class="quiet" onClick=${() => stop(column)}>Stop</button>`}
      <button
        type="button"
        class="quiet"
        aria-pressed=${chosen}
        aria-label=${`Adjust column ${letter}`}
        onClick=${() => (selectedId.value = column.id)}
      >
        Adjust
      </button>
      ${!isBase(column) &&
      html`<button
        type="button"
        class="quiet"
        aria-label=${`Remove column ${letter}`}
        onClick=${() => removeColumn(column)}
      >
        ✕
      </button>`}
      <p class="hint">${told}</p>
    </header>
    ${!answer
      ? html`<p class="empty">${isBase(column) ? "The model's own answer" : "The answer under your mix"} will stand here.</p>`
      : compared
        ? html`<${Differences} column=${column} answer=${answer} />`
        : html`<${Answer} column=${column} answer=${answer} at=${at} onToken=${setAt} />`}
    ${answer?.status === "failed" && html`<p class="fault" role="alert">${answer.message}</p>`}
    ${answer?.status === "stopped" && html`<p class="hint">Stopped.</p>`}
    ${answer?.status === "done" && answer.finish === "length" && html`<p class="hint">Cut off at the limit of tokens.</p>`}
    ${isStale(column) && html`<p class="hint">The question or the settings have changed since.</p>`}
    ${at !== null &&
    answer &&
    html`<${Token} column=${column} answer=${answer} at=${at} onClose=${() => setAt(null)} />`}
    ${copying && html`<${Copy} column=${column} onClose=${() => setCopying(false)} />`}
    ${answer &&
    html`<footer>
      <${Stats} answer=${answer} />
      <div class="row">
        <button type="button" class="quiet" aria-expanded=${copying} onClick=${() => setCopying(!copying)}>
          Copy request
        </button>
        <button
          type="button"
          aria-pressed=${isVoted(column)}
          disabled=${!others}
          title=${others
            ? "Keeps this vote in the browser"
            : "Needs another column with a different answer to the same question"}
          aria-label=${`Answer ${letter} is ${others > 1 ? "the best" : "better"}`}
          onClick=${() => vote(column)}
        >
          ${isVoted(column) ? "✓ " : ""}${others > 1 ? "Best" : "Better"}
        </button>
      </div>
    </footer>`}
  </article>`;
}
