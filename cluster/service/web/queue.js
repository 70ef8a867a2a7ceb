// The list of jobs: what runs, what waits, what ended; each group with its count and a page of its jobs.

import { ask } from "./api.js";
import { JobCard, live } from "./card.js";
import { alertOf, h, say } from "./dom.js";
import { announceState } from "./parts.js";
import { JobRow } from "./row.js";
import { FINAL, STAGES, isActive } from "./words.js";

const EVERY = 3_000; // milliseconds between two looks at the list
const TYPING = 300; // milliseconds without a key, until a search begins
const STREAMS = 3; // a browser opens six connections to a service of HTTP/1.1, and others are needed as well
const MOST = 500; // jobs that one answer can hold

/** The groups of jobs, with a search and a choice of one's own; they keep themselves up to date. */
export class Queue {
  #signal;
  #cards = new Map();
  #streams = new Map();
  #submitted = new Set(); // ids of jobs whose first sight is announced
  #groups = [
    new Group("Running", "running", STAGES, 100, "Nothing runs."),
    new Group("Waiting", "waiting", ["queued", "blocked", "paused"], 100, "Nobody waits."),
    new Group("Ended", "ended", FINAL, 100, "Nothing yet. What you submit shows up here."),
  ];

  constructor(signal) {
    this.#signal = signal;
    this.trouble = h("div", {});
    this.mine = h("input", { type: "checkbox", id: "mine", onchange: () => this.look() });
    let typing;
    this.search = h("input", { type: "search", id: "search", placeholder: "Model, budget, person, host",
      "aria-label": "Search jobs", oninput: () => {
        clearTimeout(typing);
        typing = setTimeout(() => this.look(), TYPING);
      } });
    this.choice = h("div", { class: "choose" }, this.search,
      h("label", { class: "check", for: "mine" }, this.mine, "only mine"));
    this.groups = this.#groups.map((group) => group.element);
    for (const group of this.#groups) group.more.addEventListener("click", () => { group.grow(); this.look(); });
  }

  /** Look at the list with jobs that were just submitted, and say where they stand: the first look may find their end. */
  add(jobs) {
    for (const { id } of jobs) {
      const seen = this.#cards.get(id);
      if (seen) announceState(seen.job);
      else this.#submitted.add(id);
    }
    return this.look();
  }

  /** Look at the list now; what went wrong is shown. */
  look() {
    return this.load().catch(() => {});
  }

  /** The same; throws when the page is left, or the service wants to know who asks. */
  async load() {
    const query = { search: this.search.value, ...(this.mine.checked ? { mine: "true" } : {}) };
    try {
      const answers = await Promise.all(this.#groups.map(({ name, limit }) =>
        ask(`/v1/jobs?${new URLSearchParams({ ...query, state: name, sort: "live", limit })}`, { signal: this.#signal })));
      this.#show(answers);
      this.trouble.replaceChildren();
      dispatchEvent(new CustomEvent("mint:connection", { detail: "" }));
    } catch (error) {
      if (this.#signal.aborted || error.status === 401) throw error;
      this.trouble.replaceChildren(alertOf(error), h("p", { class: "hint" }, "The page tries again by itself."));
      dispatchEvent(new CustomEvent("mint:connection", { detail: error.status ? "" : "lost" }));
    }
  }

  keepLooking() {
    const timer = setInterval(() => { if (!document.hidden) this.look(); }, EVERY);
    this.#signal.addEventListener("abort", () => clearInterval(timer));
  }

  #show(answers) {
    // a job that moved between two answers stands in the later group
    const latest = new Map(answers.flatMap(({ jobs }, index) => jobs.map((job) => [job.id, { job, index }])));
    for (const [id, card] of this.#cards) {
      if (latest.has(id)) continue;
      card.element.remove();
      this.#cards.delete(id);
    }
    for (const [id, { job }] of latest) {
      const card = this.#cards.get(id);
      if (card && card instanceof JobCard === isActive(job.state)) {
        card.update(job);
        continue;
      }
      if (this.#submitted.delete(id)) announceState(job);
      card?.update(job); // says what changed
      const Shape = isActive(job.state) ? JobCard : JobRow;
      this.#cards.set(id, new Shape(job, { onChanged: () => this.look() }));
    }
    this.#groups.forEach((group, index) => {
      const here = answers[index].jobs.filter((job) => latest.get(job.id).index === index);
      group.show(here.map((job) => this.#cards.get(job.id).element), answers[index].counts);
      if (index === 0) this.#follow(here.slice(0, STREAMS));
    });
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

/** A heading with the number of all jobs of some states, the cards of the first of them, and a button for more. */
class Group {
  #states;
  #step;

  constructor(title, name, states, step, empty) {
    this.name = name;
    this.#states = states;
    this.#step = this.limit = step;
    this.count = h("span", { class: "count" });
    this.empty = h("p", { class: "empty" }, empty);
    this.list = h("div", { class: name === "running" ? "cards" : "rows" });
    this.more = h("button", { type: "button", class: "quiet", hidden: true });
    this.element = h("section", { class: "group", "data-group": name },
      h("h3", {}, title, " ", this.count), this.empty, this.list, this.more);
  }

  /** Ask for more jobs from now on. */
  grow() {
    this.limit = Math.min(MOST, this.limit + this.#step);
  }

  /** Put cards into their order; a card that is in its place already is not touched. */
  show(cards, counts) {
    cards.forEach((card, index) => {
      if (this.list.children[index] !== card) this.list.insertBefore(card, this.list.children[index] ?? null);
    });
    while (this.list.children.length > cards.length) this.list.lastElementChild.remove();
    const count = this.#states.reduce((sum, state) => sum + (counts[state] ?? 0), 0);
    this.empty.hidden = count > 0;
    say(this.count, count || "");
    const left = count - this.limit;
    this.more.hidden = left <= 0;
    say(this.more, this.limit < MOST ? `Show ${Math.min(this.#step, left)} more of ${left}` : `${left} more: search for them`);
    this.more.disabled = this.limit >= MOST;
  }
}
