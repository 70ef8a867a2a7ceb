// A job that waits or has ended, as a row of a list: many fit on a screen.

import { ask } from "./api.js";
import { foreign, h, plain, say } from "./dom.js";
import { announceState } from "./parts.js";
import { FINAL, STATES, base, moment, wanted } from "./words.js";

/** One job as a row; its page has everything else. */
export class JobRow {
  #job;

  constructor(job, { onChanged = () => {} } = {}) {
    this.#job = job;
    this.cancel = h("button", { type: "button", class: "link", "aria-label": `Cancel ${plain(base(job.model))}, ${wanted(job)}`,
      onclick: () => this.#cancelJob(onChanged) }, "×");
    this.name = h("a", { href: `#/jobs/${job.id}` }, foreign(base(job.model)));
    this.budget = h("span", { class: "budget" }, wanted(job));
    this.owner = h("span", { class: "owner" });
    this.state = h("span", { class: "state" });
    this.closeness = h("span", { class: "closeness", hidden: true });
    this.reason = h("p", { class: "reason", hidden: true });
    this.element = h("article", { class: "job row", "data-job": job.id },
      h("h3", {}, this.name, " ", this.budget), this.owner, this.state, this.cancel, this.closeness, this.reason);
    this.update(job);
  }

  get job() {
    return this.#job;
  }

  /** Show the job as it stands now. */
  update(job) {
    const before = this.#job.state;
    this.#job = job;
    this.element.dataset.state = job.state;
    if (before !== job.state) announceState(job);
    say(this.owner, foreign(job.owner));
    say(this.state, standing(job));
    this.cancel.hidden = !job.mine || FINAL.includes(job.state) || job.cancel_wanted;
    this.closeness.hidden = !job.in_words["4-bit"];
    say(this.closeness, this.closeness.hidden ? "" : job.in_words.short);
    const needsReason = ["failed", "blocked"].includes(job.state) && job.reason;
    this.reason.hidden = !needsReason;
    say(this.reason, foreign(needsReason ? job.reason : ""));
    this.element.title = plain([job.reason, `${STATES[job.state]}, by ${job.watchers.join(", ") || job.owner}`].filter(Boolean).join("\n"));
  }

  async #cancelJob(onChanged) {
    this.cancel.disabled = true;
    try {
      this.update(await ask(`/v1/jobs/${this.#job.id}`, { method: "DELETE" }));
      onChanged();
    } catch (error) {
      this.reason.hidden = false;
      say(this.reason, foreign(error.message));
    }
    this.cancel.disabled = false;
  }
}

/** The place of a job in the queue, or its end. */
function standing(job) {
  if (job.state === "queued") return job.position ? `waiting, no. ${job.position}` : STATES.queued;
  return job.finished_at ? `${STATES[job.state]} ${moment(job.finished_at)}` : STATES[job.state];
}
