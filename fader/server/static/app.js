// The playground: a question, columns that answer it, and the desk that mixes each.

import { html, render, signal, useEffect, useRef, useState } from "./vendor/preact.js";
import { key, keyWanted, setKey } from "./api.js";
import { Column } from "./column.js";
import { keep } from "./kept.js";
import { Mixer } from "./mixer.js";
import { Sweep, sweeping } from "./sweep.js";
import { Votes, votes } from "./votes.js";
import { alignmentOf, ask, later, pending, stop } from "./asking.js";
import { learn, learnWhatWorks, models, refused, schema, vectors } from "./offers.js";
import { linkOf, readLink } from "./profiles.js";
import {
  addColumn,
  columns,
  model,
  MOST_COLUMNS,
  newColumn,
  question,
  running,
  said,
  selected,
  shows,
  theme,
  view,
} from "./state.js";

const failed = signal("");
const learning = signal(true);

const EXAMPLES = [
  "I failed my exam. What should I do?",
  "Is coffee good for me?",
  "How do I ask for a raise?",
];

async function start() {
  failed.value = "";
  learning.value = true;
  try {
    await learn();
    begin();
  } catch (error) {
    failed.value = error.message;
  }
  learning.value = false;
}

function begin() {
  // something to see at once: the vector `formal`, or another one that this model takes
  const mix = columns.value[1];
  const usable = vectors.value.map((one) => one.name).filter((n) => !refused.value.vectors[n]);
  const one = usable.includes("formal") ? "formal" : usable[0];
  if (!readLink(location.hash) && one && mix && !Object.keys(alignmentOf(mix)).length) {
    mix.alignment.value = { vectors: { [one]: 1 } };
  }
  columns.value.slice(1).forEach(later);
}

function Dialog({ title, open, onClose, children }) {
  const dialog = useRef(null);
  useEffect(() => {
    if (open && !dialog.current.open) dialog.current.showModal();
    if (!open && dialog.current.open) dialog.current.close();
  }, [open]);
  return html`<dialog ref=${dialog} aria-label=${title} onClose=${onClose}>
    <div class="row">
      <h2>${title}</h2>
      <button type="button" class="quiet" aria-label="Close" onClick=${onClose}>✕</button>
    </div>
    ${open && children}
  </dialog>`;
}

function Key() {
  const [typed, setTyped] = useState(key.value);
  const save = (event) => {
    event.preventDefault();
    setKey(typed);
    start();
  };
  return html`<form onSubmit=${save}>
    <p>
      A server that others can reach needs a key; writing profiles needs the admin key. It is kept
      in this tab until it is closed.
    </p>
    <label class="field"
      >API key<input
        type="password"
        autocomplete="off"
        value=${typed}
        onInput=${(event) => setTyped(event.currentTarget.value)}
    /></label>
    <button type="submit" class="strong">Use this key</button>
  </form>`;
}

function Head() {
  const [shared, setShared] = useState("");
  const [voting, setVoting] = useState(false);
  const next = { "": "dark", dark: "light", light: "" };
  const share = async () => {
    const link = linkOf();
    history.replaceState(null, "", link);
    try {
      await navigator.clipboard.writeText(link);
      setShared("The link is copied.");
    } catch {
      setShared("The link is in the address bar.");
    }
    setTimeout(() => setShared(""), 4000);
  };
  useEffect(() => {
    document.documentElement.dataset.theme = theme.value;
  }, [theme.value]);
  return html`<header class="top">
    <h1><img src="page/icon.svg" alt="" width="26" height="26" />fader</h1>
    ${models.value.length > 1
      ? html`<select
          aria-label="Model"
          value=${model.value}
          onChange=${(event) => {
            model.value = event.currentTarget.value;
            learnWhatWorks().then(() => columns.value.forEach(later));
          }}
        >
          ${models.value.map((one) => html`<option value=${one}>${one}</option>`)}
        </select>`
      : html`<span class="hint">${model.value}</span>`}
    <nav class="tabs" aria-label="View">
      ${["compare", "sweep"].map(
        (one) =>
          html`<button
            type="button"
            aria-current=${view.value === one ? "page" : undefined}
            onClick=${() => (view.value = one)}
          >
            ${one === "compare" ? "Compare" : "Sweep"}
          </button>`,
      )}
    </nav>
    <span class="hint" role="status">${shared}</span>
    <button type="button" class="quiet" onClick=${share}>Share</button>
    <button type="button" class="quiet" onClick=${() => setVoting(true)}>
      Votes${votes.value.length > 0 && ` (${votes.value.length})`}
    </button>
    <button type="button" class="quiet" onClick=${() => (keyWanted.value = true)}>Key</button>
    <button
      type="button"
      class="quiet"
      aria-label=${`Colours: ${theme.value || "as the system"}`}
      title="Light, dark, or as the system"
      onClick=${() => {
        theme.value = next[theme.value];
        keep("theme", theme.value);
      }}
    >
      ◐
    </button>
    <${Dialog} title="Votes" open=${voting} onClose=${() => setVoting(false)}><${Votes} /><//>
    <${Dialog} title="API key" open=${keyWanted.value} onClose=${() => (keyWanted.value = false)}>
      <${Key} />
    <//>
  </header>`;
}

function Ask() {
  const submit = (event) => {
    event?.preventDefault();
    ask();
  };
  // the buttons have keys: a single one, turned from Stop into Ask by its click, would ask again
  return html`<form class="ask" onSubmit=${submit}>
    <label for="question" class="unseen">Your question</label>
    <textarea
      id="question"
      rows="2"
      placeholder="Ask something. Every column answers it in its own way."
      value=${question.value}
      onInput=${(event) => (question.value = event.currentTarget.value)}
      onKeyDown=${(event) => {
        if (event.key === "Enter" && !event.shiftKey && view.value === "compare") {
          event.preventDefault();
          submit();
        }
      }}
    ></textarea>
    ${view.value === "compare" &&
    (running.value
      ? html`<button
          key="stop"
          type="button"
          class="strong"
          onClick=${() => columns.value.forEach(stop)}
        >
          Stop
        </button>`
      : html`<button key="ask" type="submit" class="strong" disabled=${!question.value.trim()}>
          Ask
        </button>`)}
    ${!question.value &&
    html`<p class="examples">
      Try ${EXAMPLES.map(
        (one) =>
          html`<button type="button" class="quiet" onClick=${() => (question.value = one)}>
            ${one}
          </button>`,
      )}
    </p>`}
  </form>`;
}

function Compare() {
  const full = columns.value.length >= MOST_COLUMNS;
  const options = [
    ["guides", "What guides added"],
    ["differences", "Words that differ from A"],
  ];
  return html`<section aria-label="Answers">
    <div class="row wrap tools">
      <fieldset class="tabs">
        <legend class="unseen">Shown in the answers</legend>
        ${options.map(
          ([value, label]) =>
            html`<label class=${shows.value === value ? "chosen" : ""}
              ><input
                type="radio"
                name="shows"
                class="unseen"
                checked=${shows.value === value}
                onChange=${() => (shows.value = value)}
              />${label}</label
            >`,
        )}
      </fieldset>
      <span class="legend hint" aria-hidden="true">
        ${shows.value === "guides"
          ? html`<span class="token more-3">likelier</span> <span class="token less-3">less likely</span> by the guides`
          : html`<ins>new</ins> <del>gone</del>`}
      </span>
      <button
        type="button"
        class="quiet"
        disabled=${full}
        title=${full ? "Four columns are shown, as many as there may be" : ""}
        onClick=${() =>
          addColumn(newColumn("Another mix", structuredClone(alignmentOf(selected.value))))}
      >
        + Column
      </button>
    </div>
    <div class=${`columns of-${columns.value.length}`}>
      ${columns.value.map((column) => html`<${Column} key=${column.id} column=${column} />`)}
    </div>
  </section>`;
}

function App() {
  const busy = learning.value || running.value || pending.value > 0 || sweeping.value;
  return html`<${Head} />
    ${failed.value &&
    html`<p class="banner" role="alert">
      ${failed.value} <button type="button" onClick=${start}>Try again</button>
    </p>`}
    <div class="page">
      <main aria-busy=${busy}>
        <${Ask} />
        ${view.value === "compare" ? html`<${Compare} />` : html`<${Sweep} />`}
      </main>
      ${vectors.value && model.value && html`<${Mixer} />`}
    </div>
    <p class="unseen" aria-live="polite">${said}</p>`;
}

render(html`<${App} />`, document.getElementById("app"));
start();
addEventListener("hashchange", () => {
  if (schema.value && readLink(location.hash)) columns.value.slice(1).forEach(later);
});
