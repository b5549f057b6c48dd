// The mixing desk of one column: vectors, preferences, guides, search, and what is sampled.

import { html, useEffect, useRef } from "./vendor/preact.js";
import { asLines, Choice, Field, Fields, GroupFault, NumberBox, TextBox } from "./form.js";
import { Profiles } from "./profiles.js";
import {
  answersAgain,
  edit,
  editSampling,
  example,
  faultsUnder,
  isBase,
  kindsOf,
  letterOf,
  RANGE,
  refused,
  sampling,
  schema,
  schemaOf,
  seedLocked,
  selected,
  vectors,
} from "./state.js";

const LEVELS = ["avoidance", "generic", "expert"];
const percent = (share) => `${Math.round(share * 100)}%`;

// What was measured of a vector, in words.
export function effectOf(card) {
  const effect = card?.effect;
  if (!effect?.strengths?.length) return "Nothing was measured of this vector.";
  const rows = effect.strengths.map((one) => {
    const levels = LEVELS.filter((level) => one[level] > 0.005);
    const told = levels.length
      ? levels.map((level) => `${level} ${percent(one[level])}`).join(", ")
      : percent(one.chosen);
    return `${String(one.strength).replace("-", "−")}: ${told}`;
  });
  const what = LEVELS.some((level) => level in effect.strengths[0])
    ? "which level of answer the model prefers"
    : "how often the model prefers the answer of this kind";
  const told = `Measured on ${effect.items} held-out questions, ${what}:`;
  return [told, ...rows, card.caution].filter(Boolean).join("\n");
}

// A fader is filled from its middle, where it is off.
const filled = (value) => {
  const at = 50 + (50 * Math.max(-RANGE, Math.min(RANGE, value))) / RANGE;
  return { "--from": `${Math.min(at, 50)}%`, "--to": `${Math.max(at, 50)}%` };
};

function Slider({ column, vector }) {
  const { name, card } = vector;
  const path = `alignment.vectors.${name}`;
  const value = column.alignment.value.vectors?.[name] ?? 0;
  const set = (strength) =>
    edit(column, (alignment) => {
      alignment.vectors = { ...alignment.vectors, [name]: strength };
    });
  const slide = (event) => {
    const strength = Number(event.currentTarget.value);
    set(Math.abs(strength) < 0.04 ? 0 : strength); // zero is easy to hit
  };
  return html`<div class=${`slider ${value ? "on" : ""}`}>
    <${Field}
      label=${name}
      path=${path}
      about=${effectOf(card)}
      why=${refused.value.vectors[name]}
      control=${(props) =>
        html`<input
            ...${props}
            type="range"
            min=${-RANGE}
            max=${RANGE}
            step="0.05"
            value=${value}
            style=${filled(value)}
            title="Double click: back to 0"
            onInput=${slide}
            onDblClick=${() => set(0)}
            onKeyDown=${(event) => event.key === "Escape" && set(0)}
          /><output for=${props.id}>${value > 0 ? "+" : ""}${value.toFixed(2)}</output>`}
    />
  </div>`;
}

function Section({ title, count, path, children, open = false }) {
  const faulty = path && faultsUnder(path).length > 0;
  const opened = useRef(null);
  useEffect(() => {
    if (faulty) opened.current.open = true;
  }, [faulty]);
  return html`<details class="section" open=${open} ref=${opened}>
    <summary>
      <h3>${title}</h3>
      ${count > 0 && html`<span class="count">${count}</span>`}
      ${faulty && html`<span class="count faulty">!</span>`}
    </summary>
    ${children}
  </details>`;
}

function Lines({ column, name, label, about, placeholder }) {
  const value = (column.alignment.value.preferences?.[name] ?? []).join("\n");
  const set = (lines) =>
    edit(column, (alignment) => {
      const { [name]: _, ...others } = alignment.preferences ?? {};
      alignment.preferences = lines ? { ...others, [name]: lines } : others;
    });
  return html`<${Field}
    label=${label}
    about=${about}
    path=${`alignment.preferences.${name}`}
    why=${refused.value.preferences}
    control=${(props) =>
      html`<${TextBox}
        key=${column.id}
        props=${props}
        value=${value}
        read=${asLines}
        rows=${2}
        placeholder=${placeholder}
        onValue=${set}
      />`}
  />`;
}

function Preferences({ column }) {
  const said = column.alignment.value.preferences ?? {};
  const count = ["provider", "user", "facts"].reduce((sum, n) => sum + (said[n]?.length ?? 0), 0);
  const rendering = schema.value.$defs.Preferences.properties.rendering;
  return html`<${Section} title="Preferences" count=${count} path="alignment.preferences">
    <p class="hint">What the model is told before it answers, one a line.</p>
    <${Lines}
      column=${column}
      name="provider"
      label="The provider's rules"
      about="Guidelines of whoever offers the model. They win over the user's."
      placeholder="Never give medical doses."
    />
    <${Lines}
      column=${column}
      name="user"
      label="The user's wishes"
      about="What the person who asks would like."
      placeholder="Answer in two sentences."
    />
    <${Lines}
      column=${column}
      name="facts"
      label="About the user"
      about="Facts from which wishes are to be inferred."
      placeholder="I am ten years old."
    />
    <${Field}
      label="How it is said"
      about=${rendering.description?.replaceAll("`", "")}
      path="alignment.preferences.rendering"
      control=${(props) =>
        html`<${Choice}
          props=${props}
          value=${said.rendering ?? rendering.default}
          options=${rendering.enum}
          onValue=${(one) =>
            edit(column, (alignment) => {
              alignment.preferences = { ...alignment.preferences, rendering: one };
            })}
        />`}
    />
  <//>`;
}

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
        html`<div class="entry" key=${`${one.kind}${i}`}>
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

function Guides({ column }) {
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

function Search({ column }) {
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

const SAMPLED = [
  ["temperature", "Temperature", "0 takes the likeliest token each time; 1 draws as the model says.", "number"],
  ["top_p", "Top p", "Draws among the fewest tokens that hold this much probability.", "number"],
  ["top_k", "Top k", "Draws among this many likeliest tokens.", "integer"],
  ["max_tokens", "Tokens at most", "An answer ends after so many tokens.", "integer"],
  [
    "repetition_penalty",
    "Repetition penalty",
    "Makes tokens that were read or written already less likely; 1 is off.",
    "number",
  ],
];

function Sampling() {
  return html`<${Section} title="Sampling">
    <p class="hint">The same for all columns, so that they differ by their alignment alone.</p>
    <div class="pairs">
      ${SAMPLED.map(
        ([name, label, about, type]) =>
          html`<${Field}
            key=${name}
            label=${label}
            about=${about}
            path=${name}
            control=${(props) =>
              html`<${NumberBox}
                props=${props}
                part=${{ type }}
                value=${sampling.value[name]}
                placeholder="none"
                onValue=${(found) => editSampling(name, found ?? null)}
              />`}
          />`,
      )}
      <${Field}
        label="Seed"
        about="The same seed gives the same answer, whatever else runs."
        path="seed"
        control=${(props) =>
          html`<span class="row"
            ><${NumberBox}
              props=${props}
              part=${{ type: "integer" }}
              value=${sampling.value.seed}
              onValue=${(found) => editSampling("seed", found ?? null)}
            /><button
              type="button"
              class="quiet"
              aria-pressed=${seedLocked.value}
              title=${seedLocked.value
                ? "Locked: the seed stays as it is"
                : "Open: another seed each time"}
              onClick=${() => (seedLocked.value = !seedLocked.value)}
            >
              <span aria-hidden="true">${seedLocked.value ? "🔒" : "🎲"}</span>
              <span class="unseen">Lock the seed</span>
            </button></span
          >`}
      />
    </div>
    <${Field}
      label="Answer again when something changes"
      only=${true}
      control=${(props) =>
        html`<input
          ...${props}
          type="checkbox"
          checked=${answersAgain.value}
          onChange=${(event) => (answersAgain.value = event.currentTarget.checked)}
        />`}
    />
  <//>`;
}

export function Mixer() {
  const column = selected.value;
  const mixed = Object.values(column.alignment.value.vectors ?? {}).filter(Boolean).length;
  const known = new Set(vectors.value.map((one) => one.name));
  // a link or profile may name vectors that are not here: they are shown, with the server's fault
  const unknown = Object.keys(column.alignment.value.vectors ?? {})
    .filter((name) => !known.has(name))
    .map((name) => ({ name, card: null }));
  const fits = ({ name }) => !refused.value.vectors[name];
  const fitting = vectors.value.filter(fits);
  const others = vectors.value.filter((vector) => !fits(vector));
  const slider = (vector) =>
    html`<${Slider} key=${vector.name} column=${column} vector=${vector} />`;
  return html`<aside class="mixer" aria-label="Mixing desk">
    <div class="mixer-head">
      <h2><span class=${`letter of-${letterOf(column)}`}>${letterOf(column)}</span>${column.name}</h2>
      ${column.rows.value > 1 &&
      html`<span class="hint" title="Rows of the batch at one time">${column.rows.value} rows</span>`}
    </div>
    ${isBase(column)
      ? html`<p class="hint">
          This column is the model as it is. It stays so: the others are compared with it.
        </p>`
      : html`<${Profiles} column=${column} />
          <${GroupFault} path="alignment" />
          <${Section} title="Vectors" count=${mixed} path="alignment.vectors" open=${true}>
            <p class="hint">
              Each moves the manner of the answer one way, or the other. Double click: back to 0.
            </p>
            ${vectors.value.length === 0 &&
            html`<p class="hint">This server has no vectors. <code>fader train vector</code> makes them.</p>`}
            ${[...fitting, ...unknown].map(slider)}
            ${others.length > 0 &&
            html`<details class="more">
              <summary>${others.length} that do not fit this model</summary>
              ${others.map(slider)}
            </details>`}
          <//>
          <${Preferences} column=${column} />
          <${Guides} column=${column} />
          <${Search} column=${column} />`}
    <${Sampling} />
  </aside>`;
}
