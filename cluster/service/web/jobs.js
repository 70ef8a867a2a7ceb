// The queue: a form beside what runs, waits and ended; and the page of one job.

import { ask, person } from "./api.js";
import { JobCard } from "./card.js";
import { alertOf, facts, h, say, table } from "./dom.js";
import { submitForm } from "./form.js";
import { follow } from "./stream.js";
import { downloads } from "./downloads.js";
import { FINAL, STATES, base, duration, figures, isActive, moment, short, size, wanted } from "./words.js";

const EVERY = 3_000; // milliseconds between two looks at the list
const STREAMS = 3; // a browser opens six connections to a service of HTTP/1.1, and others are needed as well
const RECENT = 30;

/** The running, waiting and finished jobs, and a form for more. */
export async function jobsPage({ signal }) {
  const queue = new Queue(signal);
  const mine = h("input", { type: "checkbox", id: "mine", onchange: () => queue.look() });
  queue.mine = mine;
  const [{ maySubmit }] = await Promise.all([person(signal), queue.load()]);
  const form = maySubmit
    ? await submitForm({ onSubmitted: () => queue.look(), signal })
    : h("p", { class: "empty" }, "This token allows to look, plan and download; to submit it needs the scope submit.");
  queue.keepLooking();
  return [
    h("h1", { class: "hidden" }, "Jobs"),
    h("div", { class: "columns" },
      h("section", { class: "ask", "aria-labelledby": "ask" }, h("h2", { id: "ask" }, "Fit a model"), form),
      h("section", { class: "queue", "aria-labelledby": "queue" },
        h("div", { class: "head" }, h("h2", { id: "queue" }, "Jobs"), h("label", { class: "check", for: "mine" }, mine, "only mine")),
        queue.trouble, queue.running, queue.waiting, queue.ended)),
  ];
}

class Queue {
  #signal;
  #cards = new Map();
  #streams = new Map();

  constructor(signal) {
    this.#signal = signal;
    this.trouble = h("div", {});
    this.running = group("Running", "Nothing runs.");
    this.waiting = group("Waiting", "Nobody waits.");
    this.ended = group("Ended", "Nothing yet. What you submit shows up here.");
  }

  /** Look at the list now; what went wrong is shown. */
  look() {
    return this.load().catch(() => {});
  }

  /** The same; throws when the page is left, or the service wants to know who asks. */
  async load() {
    const mine = this.mine.checked ? "&mine=true" : "";
    try {
      const { jobs } = await ask(`/v1/jobs?limit=100${mine}`, { signal: this.#signal });
      this.#show(jobs);
      this.trouble.replaceChildren();
      dispatchEvent(new CustomEvent("mint:connection", { detail: "" }));
    } catch (error) {
      if (this.#signal.aborted || error.status === 401) throw error;
      this.trouble.replaceChildren(alertOf(error));
      dispatchEvent(new CustomEvent("mint:connection", { detail: error.status ? "" : "lost" }));
    }
  }

  keepLooking() {
    const timer = setInterval(() => { if (!document.hidden) this.look(); }, EVERY);
    this.#signal.addEventListener("abort", () => clearInterval(timer));
  }

  #show(jobs) {
    const known = new Set(jobs.map((job) => job.id));
    for (const [id, card] of this.#cards) {
      if (known.has(id)) continue;
      card.element.remove();
      this.#cards.delete(id);
    }
    for (const job of jobs) {
      const card = this.#cards.get(job.id);
      if (card) card.update(job);
      else this.#cards.set(job.id, new JobCard(job, { onCancelled: () => this.look() }));
    }
    const oldest = [...jobs].sort((a, b) => b.priority - a.priority || a.created_at - b.created_at);
    this.#place(this.running, oldest.filter((job) => isActive(job.state)));
    this.#place(this.waiting, oldest.filter((job) => !isActive(job.state) && !FINAL.includes(job.state)));
    const ended = jobs.filter((job) => FINAL.includes(job.state)).sort((a, b) => b.finished_at - a.finished_at);
    this.#place(this.ended, ended.slice(0, RECENT));
    this.#follow(oldest.filter((job) => isActive(job.state)).slice(0, STREAMS));
  }

  /** Put the cards of `jobs` into a group in their order; a card that is in its place already is not touched. */
  #place(place, jobs) {
    const list = place.querySelector(".cards");
    jobs.forEach((job, index) => {
      const { element } = this.#cards.get(job.id);
      if (list.children[index] !== element) list.insertBefore(element, list.children[index] ?? null);
    });
    while (list.children.length > jobs.length) list.lastElementChild.remove();
    place.querySelector(".empty").hidden = jobs.length > 0;
    say(place.querySelector(".count"), jobs.length || "");
  }

  #follow(jobs) {
    for (const [id, stream] of this.#streams) {
      if (jobs.some((job) => job.id === id)) continue;
      stream.abort();
      this.#streams.delete(id);
    }
    for (const job of jobs) {
      if (this.#streams.has(job.id)) continue;
      const stream = new AbortController();
      this.#streams.set(job.id, stream);
      live(this.#cards.get(job.id), AbortSignal.any([this.#signal, stream.signal]), () => this.look());
    }
  }
}

function group(name, empty) {
  return h("section", { class: "group" },
    h("h3", {}, name, " ", h("span", { class: "count" })), h("p", { class: "empty" }, empty), h("div", { class: "cards" }));
}

/** Keep a card's progress up to date by its events; `onEnd` when the job is over. */
function live(card, signal, onEnd = () => {}) {
  return follow(`/v1/jobs/${card.job.id}/events`, {
    after: Math.max(0, card.job.last_seq - 1), // the last one says how far it is
    signal,
    onEvent: (event) => {
      if (event.kind === "progress") card.progress(event.body);
      if (event.kind === "state") card.update({ ...card.job, ...stateOf(event) });
      const over = FINAL.includes(card.job.state);
      if (over) onEnd();
      return over;
    },
  }).catch(() => onEnd());
}

function stateOf({ body, at }) {
  const ended = FINAL.includes(body.state);
  return { state: body.state, reason: body.reason ?? "", ...(ended ? { finished_at: at } : {}) };
}

/** Everything about one job: how it goes, what was asked, what came of it, what happened. */
export async function jobPage({ key, signal }) {
  let job = await ask(`/v1/jobs/${key}`, { signal });
  const card = new JobCard(job);
  const result = h("div", {});
  const log = h("ol", { class: "log" });
  const refresh = async () => {
    job = await ask(`/v1/jobs/${key}`, { signal });
    card.update(job);
    result.replaceChildren(...(await resultOf(job, signal)));
  };
  result.replaceChildren(...(await resultOf(job, signal)));
  follow(`/v1/jobs/${key}/events`, {
    signal,
    onEvent: (event) => {
      if (event.kind !== "progress") log.append(h("li", {}, h("time", {}, moment(event.at)), " ", noteOf(event)));
      if (event.seq < job.last_seq) return false; // the card knows more already
      if (event.kind === "progress") card.progress(event.body);
      if (event.kind === "state") card.update({ ...card.job, ...stateOf(event) });
      const over = FINAL.includes(card.job.state);
      if (over && !FINAL.includes(job.state)) refresh().catch(() => {}); // else the result is there already
      return over;
    },
  }).catch((error) => log.append(h("li", {}, error.message)));
  return [
    h("p", { class: "path" }, h("a", { href: `#/models/${job.identity}` }, job.model)),
    h("h1", {}, `${base(job.model)} in ${wanted(job)}`),
    card.element, result,
    h("section", {}, h("h2", {}, "What was asked"), facts([
      ["Job", h("code", {}, job.id)],
      ["Model", job.model],
      ["Identity", h("code", {}, short(job.identity))],
      ["Budget", wanted(job)],
      ...Object.entries(job.options).map(([name, value]) => [name, Array.isArray(value) ? value.join(", ") : String(value)]),
      ["Asked at", moment(job.created_at)],
    ])),
    h("section", {}, h("h2", {}, "What happened"), log),
  ];
}

function noteOf({ kind, body }) {
  if (kind === "state") return `${STATES[body.state] ?? body.state}${body.reason ? `: ${body.reason}` : ""}`;
  return body.message ?? body.text ?? JSON.stringify(body);
}

async function resultOf(job, signal) {
  if (job.state !== "done" || !job.artifact) return [];
  return [h("section", {}, h("h2", {}, "Result"), resultFacts(job), ...(await downloads([job.artifact], signal)))];
}

function resultFacts({ result }) {
  const kl = result.predicted_kl;
  return facts([
    ["All weight files", result.planned_bytes && size(result.planned_bytes)],
    ["Bits per weight", result.bits_per_weight && figures(result.bits_per_weight, 3)],
    ["Predicted KL", kl && figures(kl.value ?? kl, 3)],
    ["Took", Number.isFinite(result.seconds) ? duration(result.seconds) : ""],
  ]);
}

/** The history of a model: its jobs as rows. */
export function history(jobs) {
  return table("Jobs of this model", [
    ["Asked", (job) => h("a", { href: `#/jobs/${job.id}` }, moment(job.created_at))],
    ["Budget", wanted],
    ["State", (job) => h("span", { class: "state", "data-state": job.state }, STATES[job.state] ?? job.state)],
    ["By", (job) => job.watchers.join(", ") || job.owner],
  ], jobs);
}
