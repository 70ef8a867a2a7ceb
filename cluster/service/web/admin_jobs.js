// The queue as administrators see it: everybody's jobs in a table, with what can be done with each.

import { ask } from "./api.js";
import { Live, action } from "./parts.js";
import { confirmed } from "./dialog.js";
import { foreign, h } from "./dom.js";
import { showLog } from "./log.js";
import { table } from "./tables.js";
import { FINAL, STATES, ago, base, isActive, wanted } from "./words.js";

const MOST = 100;
const CHOICES = [["unfinished", "Unfinished"], ["running", "Running"], ["waiting", "Waiting"], ["failed", "Failed"], ["ended", "Ended"], ["", "All"]];
const QUERIES = { unfinished: ["running", "waiting"] };

/** The table of jobs with a search and a choice of states; `look` fetches it. */
export class JobDesk {
  #signal;
  #onChanged;
  #live = new Live((jobs) => this.#draw(jobs));

  constructor(signal, onChanged) {
    this.#signal = signal;
    this.#onChanged = onChanged;
    this.search = h("input", { type: "search", id: "job-search", "aria-label": "Search jobs", placeholder: "Model, person, host, reason", oninput: onChanged });
    this.states = h("select", { id: "job-states", "aria-label": "State", onchange: onChanged }, CHOICES.map(([value, title]) => h("option", { value }, title)));
    this.choice = [this.search, this.states];
    this.element = this.#live.element;
  }

  /** The chosen jobs now, for `show`, and the numbers of all jobs by state. */
  async look() {
    const chosen = this.states.value;
    const query = new URLSearchParams({ search: this.search.value, sort: "live", limit: MOST });
    for (const state of QUERIES[chosen] ?? [chosen].filter(Boolean)) query.append("state", state);
    const [{ jobs }, { counts }] = await Promise.all([
      ask(`/v1/jobs?${query}`, { signal: this.#signal }), ask("/v1/jobs?limit=1", { signal: this.#signal })]);
    return { shown: jobs, counts };
  }

  show({ shown }) {
    this.#live.show(shown);
  }

  #draw(jobs) {
    if (!jobs.length) return h("p", { class: "empty" }, "There is no such job.");
    return [
      table("Jobs of everybody", [
        ["Job", (job) => [h("a", { href: `#/jobs/${job.id}` }, foreign(base(job.model))), ` ${wanted(job)}`]],
        ["Person", (job) => foreign(job.watchers.join(", ") || job.owner)],
        ["State", (job) => [h("span", { class: "state", "data-state": job.state }, STATES[job.state]),
          job.position ? ` no. ${job.position}` : "", job.reason && h("small", { class: "why" }, foreign(job.reason))]],
        ["Machine", (job) => (job.host ? foreign(job.host) : "")],
        ["Since", (job) => ago(job.finished_at ?? (isActive(job.state) ? job.started_at : job.created_at))],
        ["", (job) => this.#actions(job)],
      ], jobs),
      jobs.length === MOST && h("p", { class: "hint" }, `The first ${MOST} are shown; search for others.`),
    ];
  }

  #actions(job) {
    const path = `/v1/jobs/${job.id}`;
    const name = `${base(job.model)}, ${wanted(job)}, ${job.owner}`;
    const button = (title, work, key = title) => action(title, `${key}-${job.id}`, name, work, this.#onChanged);
    const ended = FINAL.includes(job.state);
    const paused = job.state === "paused" || job.yields_to === "paused";
    return h("span", { class: "actions" },
      !ended && button(paused ? "Resume" : "Pause", () => ask(path, { method: "PATCH", body: { paused: !paused } }), "Pause"),
      !["queued", "done"].includes(job.state) && button("Requeue", () => ask(`${path}/requeue`, { method: "POST", body: {} })),
      !ended && button("Cancel", () => confirmed("Cancel it for everybody?", `${name}. What was measured stays.`, "Cancel it", () =>
        ask(`${path}?everybody=true`, { method: "DELETE" }))),
      button("Log", () => showLog(job)));
  }
}

