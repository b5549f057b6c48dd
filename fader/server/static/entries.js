// Guides, rewards and the search: lists of entries, of the kinds that the server has.

import { html, useRef } from "./vendor/preact.js";
import { edit } from "./asking.js";
import { Field, Fields, GroupFault, Section } from "./form.js";
import { example, kindsOf, refused, schemaOf } from "./offers.js";
import { selectedId } from "./state.js";

const firstSentence = (text) => text.replaceAll("`", "").split(/(?<=[.:])\s/)[0].replaceAll("\n", " ");

// A menu of the kinds there are; one that cannot be used here says why.
function Add({ label, group, onAdd }) {
  const menu = useRef(null);
  const choose = (kind) => {
    menu.current.open = false;
    menu.current.querySelector("summary").focus();
    onAdd(example(kind));
  };
  return html`<details class="menu" ref=${menu}>
    <summary>${label}</summary>
    <ul>
      ${kindsOf(group).map((kind) => {
        const why = refused.value[group][kind];
        return html`<li key=${kind}>
          <button type="button" disabled=${Boolean(why)} onClick=${() => choose(kind)}>
            <strong>${kind}</strong>
            <span>${why ?? firstSentence(schemaOf(group, kind).description ?? "")}</span>
          </button>
        </li>`;
      })}
    </ul>
  </details>`;
}

function Entries({ group, list, path, onList, label }) {
  return html`${list.map(
      (one, i) =>
        html`<div class="entry" key=${`${selectedId.value} ${one.kind} ${i}`}>
          <div class="row">
            <h4 title=${schemaOf(group, one.kind).description}>${one.kind}</h4>
            <button
              type="button"
              class="quiet"
              aria-label=${`Remove ${one.kind}`}
              onClick=${() => onList(list.filter((_, j) => j !== i))}
            >
              ✕
            </button>
          </div>
          <${Fields}
            schema=${schemaOf(group, one.kind)}
            value=${one}
            path=${`${path}[${i}]`}
            onChange=${(found) => onList(list.map((old, j) => (j === i ? found : old)))}
          />
        </div>`,
    )}
    <${Add} label=${label} group=${group} onAdd=${(one) => onList([...list, one])} />`;
}

export function Guides({ column }) {
  const list = column.alignment.value.guides ?? [];
  return html`<${Section} title="Guides" count=${list.length} path="alignment.guides">
    <p class="hint">
      Move each token's scores towards one way to answer, and away from another. Words that a guide
      made likelier are coloured in the answer.
    </p>
    <${Entries}
      group="guides"
      list=${list}
      path="alignment.guides"
      label="Add a guide"
      onList=${(found) =>
        edit(column, (alignment) => {
          alignment.guides = found;
        })}
    />
  <//>`;
}

const SEARCHES = {
  "": "No search: the answer is written once",
  "best-of-n": "best-of-n: write several, keep the best",
  blockwise: "blockwise: keep the best block, and go on",
  segments: "segments: try a segment until it is good",
  lookahead: "lookahead: look ahead at each token",
};
const FIRST = {
  "best-of-n": ["n"],
  blockwise: ["n", "block"],
  segments: ["tries", "target"],
  lookahead: ["top_k", "lookahead"],
};

export function Search({ column }) {
  const search = column.alignment.value.search ?? null;
  const set = (found) =>
    edit(column, (alignment) => {
      alignment.search = found;
    });
  const choose = (kind) => {
    const rewards = search?.rewards ?? [example("length")];
    set(kind ? { kind, rewards, ...(kind === "lookahead" ? { top_k: 4, lookahead: 8 } : {}) } : null);
  };
  const path = "alignment.search";
  const part = search && schemaOf("search", search.kind);
  const others = part && {
    ...part,
    required: [],
    properties: Object.fromEntries(
      Object.entries(part.properties).filter(
        ([name]) => name !== "rewards" && !(name === "weight" && search.kind !== "lookahead"),
      ),
    ),
  };
  return html`<${Section}
    title="Rewards and search"
    count=${search?.rewards.length ?? 0}
    path=${path}
  >
    <p class="hint">Rewards score texts; a search keeps the continuation that scores best.</p>
    <${Field}
      label="Search"
      control=${(props) =>
        html`<select
          ...${props}
          value=${search?.kind ?? ""}
          onChange=${(event) => choose(event.currentTarget.value)}
        >
          ${["", ...kindsOf("search")].map(
            (kind) =>
              html`<option value=${kind} selected=${kind === (search?.kind ?? "")}>
                ${SEARCHES[kind] ?? kind}
              </option>`,
          )}
        </select>`}
    />
    ${search &&
    html`<${GroupFault} path=${path} />
      <${Fields}
        key=${search.kind}
        schema=${others}
        value=${search}
        path=${path}
        first=${FIRST[search.kind] ?? []}
        onChange=${set}
      />
      <${Entries}
        group="rewards"
        list=${search.rewards}
        path="alignment.search.rewards"
        label="Add a reward"
        onList=${(rewards) => set({ ...search, rewards })}
      />`}
  <//>`;
}
