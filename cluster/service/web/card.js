// A job as a card that lives: its way through the stages, its figures for every host, its end.

import { ask } from "./api.js";
import { foreign, h, plain, say } from "./dom.js";
import { announceState } from "./parts.js";
import { follow } from "./stream.js";
import { FINAL, IN_BYTES, STAGES, STATES, base, duration, figures, isActive, moment, secondsLeft, size, wanted } from "./words.js";

/** One job on the page: made once, then told what changed, so that focus and buttons stay where they are. */
export class JobCard {
  #job;
  #progress = null;
  #bars = new Map();
  #hosts = new Map();

  constructor(job, { onChanged = () => {} } = {}) {
    this.#job = job;
    this.state = h("span", { class: "state" });
    this.reason = h("p", { class: "reason", hidden: true });
    this.doing = h("p", { class: "doing" });
    this.track = h("ol", { class: "track", "aria-label": "Stages" }, STAGES.map((stage) => {
      const bar = h("progress", { max: "1", value: "0", "aria-label": STATES[stage] });
      this.#bars.set(stage, bar);
      return h("li", { title: STATES[stage] }, bar);
    }));
    this.hosts = h("ul", { class: "hosts" });
    this.cancel = h("button", { type: "button", class: "quiet", "aria-label": `Cancel ${plain(base(job.model))}, ${wanted(job)}`,
      onclick: () => this.#change("DELETE", undefined, onChanged) }, "Cancel");
    this.pause = h("button", { type: "button", class: "quiet",
      onclick: () => this.#change("PATCH", { paused: !this.#isPaused }, onChanged) }, "Pause");
    this.element = h("article", { class: "card job", "data-job": job.id },
      h("div", { class: "head" },
        h("h3", {}, h("a", { href: `#/jobs/${job.id}` }, foreign(base(job.model))), " ", h("span", { class: "budget" }, wanted(job))),
        this.state),
      this.track, this.doing, this.hosts, this.reason,
      h("div", { class: "foot" }, this.figures = h("p", { class: "hint" }), h("div", { class: "inline" }, this.pause, this.cancel)));
    this.update(job);
  }

  get job() {
    return this.#job;
  }

  get #isPaused() {
    return this.#job.state === "paused" || this.#job.yields_to === "paused";
  }

  /** Show the job as it stands now. */
  update(job) {
    const before = this.#job.state;
    if (before !== job.state) this.#progress = null;
    this.#job = job;
    this.element.dataset.state = job.state;
    say(this.state, stateWords(job));
    if (before !== job.state) announceState(job);
    const here = STAGES.indexOf(job.state);
    this.track.hidden = here < 0;
    STAGES.forEach((stage, index) => {
      const bar = this.#bars.get(stage);
      bar.parentElement.dataset.when = index < here ? "past" : index > here ? "later" : "now";
      bar.parentElement.toggleAttribute("aria-current", index === here);
      if (index !== here) bar.value = index < here ? 1 : 0;
    });
    if (!isActive(job.state)) {
      say(this.doing, "");
      this.hosts.replaceChildren();
      this.#hosts.clear();
    }
    this.reason.hidden = !job.reason;
    say(this.reason, foreign(job.reason));
    this.cancel.hidden = !job.mine || FINAL.includes(job.state) || job.cancel_wanted;
    this.pause.hidden = this.cancel.hidden || job.watchers.length > 1;
    say(this.pause, this.#isPaused ? "Resume" : "Pause");
    this.pause.setAttribute("aria-label", `${this.#isPaused ? "Resume" : "Pause"} ${plain(base(job.model))}, ${wanted(job)}`);
    say(this.figures, ...this.#summary());
  }

  /** Show how far its stage has come. */
  progress(body) {
    this.#progress = body;
    const bar = this.#bars.get(this.#job.state);
    const share = body.total > 0 ? body.done / body.total : 0;
    if (bar) bar.value = share;
    const amount = (value) => (IN_BYTES.includes(body.stage) ? size(value, 3) : figures(value));
    const count = body.total > 0 ? `${amount(body.done)} of ${amount(body.total)}` : "";
    say(this.doing, [`${Math.floor(100 * share)} %`, count, body.item].filter(Boolean).join(" · "));
    const most = Math.max(1, ...(body.hosts ?? []).map((host) => host.done));
    for (const host of body.hosts ?? []) this.#host(host.host).tell(host, most);
    say(this.figures, ...this.#summary());
  }

  #host(name) {
    if (!this.#hosts.has(name)) {
      const bar = h("progress", { max: "1", value: "0", "aria-label": plain(name) });
      const said = h("span", { class: "rate" });
      this.hosts.append(h("li", {}, h("span", { class: "name" }, foreign(name)), bar, said));
      this.#hosts.set(name, {
        tell: (host, most) => {
          bar.value = host.done / most;
          const rate = host.bytes_per_second ? `${size(host.bytes_per_second, 2)}/s` : "";
          say(said, [size(host.done, 3), rate].filter(Boolean).join(" · "));
        },
      });
    }
    return this.#hosts.get(name);
  }

  #summary() {
    const job = this.#job;
    const people = [job.owner, ...job.watchers.filter((name) => name !== job.owner)].filter(Boolean);
    const ran = job.started_at && (job.finished_at ?? Date.now() / 1000) - job.started_at;
    const time = FINAL.includes(job.state) ? moment(job.finished_at) : `since ${moment(job.created_at)}`;
    const left = secondsLeft(job, this.#progress);
    const facts = [
      ["asked by ", foreign(people.join(", ") || "this machine")],
      isActive(job.state) ? job.host && ["on ", foreign(job.host)] : [time],
      ran && job.state !== "queued" ? [`${isActive(job.state) ? "for" : "took"} ${duration(ran)}`] : "",
      job.position ? [`number ${job.position} in the queue`] : "",
      left === null || left < 1 ? "" : [`about ${duration(left)} left`],
      job.attempts > 1 ? [`attempt ${job.attempts}`] : "",
    ].filter(Boolean);
    return facts.flatMap((parts, index) => (index ? [" · ", ...parts] : parts));
  }

  async #change(method, body, onChanged) {
    this.cancel.disabled = this.pause.disabled = true;
    try {
      const job = await ask(`/v1/jobs/${this.#job.id}`, { method, body });
      this.update(job);
      announceState(job);
      onChanged(job);
    } catch (error) {
      this.reason.hidden = false;
      say(this.reason, foreign(error.message));
    }
    this.cancel.disabled = this.pause.disabled = false;
  }
}

/** Keep a card's progress up to date by its events; `onEnd` when the job is over. */
export function live(card, signal, onEnd = () => {}) {
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

function stateWords(job) {
  if (FINAL.includes(job.state)) return STATES[job.state];
  if (job.cancel_wanted) return "being cancelled";
  return isActive(job.state) && job.yields_to === "paused" ? "being paused" : STATES[job.state] ?? job.state;
}

/** The fields of a job that an event of its state changes. */
export function stateOf({ body, at }) {
  const ended = FINAL.includes(body.state);
  return { state: body.state, reason: body.reason ?? "", ...(ended ? { finished_at: at } : {}) };
}
