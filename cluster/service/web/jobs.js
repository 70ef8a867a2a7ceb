// The page of all jobs: a form beside the queue; and the page of one job.

import { ask, person } from "./api.js";
import { action } from "./parts.js";
import { JobCard, stateOf } from "./card.js";
import { foreign, h } from "./dom.js";
import { submitForm } from "./form.js";
import { showLog } from "./log.js";
import { Queue } from "./queue.js";
import { follow } from "./stream.js";
import { resultOf } from "./result.js";
import { facts, table } from "./tables.js";
import { spansOf, timeline } from "./timeline.js";
import { FINAL, STATES, base, moment, short, size, wanted } from "./words.js";

/** The running, waiting and finished jobs, and a form for more. */
export async function jobsPage({ signal }) {
  const queue = new Queue(signal);
  const [{ maySubmit }] = await Promise.all([person(signal), queue.load()]);
  const form = maySubmit
    ? await submitForm({ onSubmitted: (jobs) => queue.add(jobs), signal })
    : h("p", { class: "empty" }, "This token allows to look, plan and download; to submit it needs the scope submit.");
  queue.keepLooking();
  return [
    h("h1", { class: "hidden" }, "Jobs"),
    h("div", { class: "columns" },
      h("section", { class: "ask", "aria-labelledby": "ask" }, h("h2", { id: "ask" }, "Fit a model"), form),
      h("section", { class: "queue", "aria-labelledby": "queue" },
        h("div", { class: "head" }, h("h2", { id: "queue" }, "Jobs"), queue.choice), queue.trouble, queue.groups)),
  ];
}

/** Everything about one job: how it goes, what was asked, what came of it, what happened. */
export async function jobPage({ key, signal }) {
  const [first, { mayAdmin }] = await Promise.all([ask(`/v1/jobs/${key}`, { signal }), person(signal)]);
  let job = first;
  const card = new JobCard(job);
  const result = h("div", { class: "sections" });
  const log = h("ol", { class: "log" });
  const stages = h("div", {});
  const events = [];
  const drawStages = () => stages.replaceChildren(timeline(spansOf(events, job.finished_at ?? Date.now() / 1000)));
  const refresh = async () => {
    job = await ask(`/v1/jobs/${key}`, { signal });
    card.update(job);
    drawStages();
    result.replaceChildren(...(await resultOf(job, signal)));
  };
  result.replaceChildren(...(await resultOf(job, signal)));
  follow(`/v1/jobs/${key}/events`, {
    signal,
    onEvent: (event) => {
      if (event.kind !== "progress") log.append(h("li", {}, h("time", {}, moment(event.at)), " ", foreign(noteOf(event))));
      if (event.kind === "state") {
        events.push(event);
        drawStages();
      }
      if (event.seq < job.last_seq) return false; // the card knows more already
      if (event.kind === "progress") card.progress(event.body);
      if (event.kind === "state") card.update({ ...card.job, ...stateOf(event) });
      const over = FINAL.includes(card.job.state);
      if (over && !FINAL.includes(job.state)) refresh().catch(() => {}); // else the result is there already
      return over;
    },
  }).catch((error) => log.append(h("li", {}, error.message)));
  return [
    h("p", { class: "path" }, h("a", { href: `#/models/${job.identity}` }, foreign(job.model))),
    h("h1", {}, foreign(base(job.model)), ` in ${wanted(job)}`),
    h("h2", { class: "hidden" }, "Progress"), card.element, result,
    h("section", {}, h("h2", {}, "What was asked"), facts([
      ["Job", h("code", {}, job.id)],
      ["Model", foreign(job.model)],
      ["Identity", h("code", {}, short(job.identity))],
      ["Budget", wanted(job)],
      ["Seen by", job.group && ["the group ", foreign(job.group)]],
      ...Object.entries(job.options).map(([name, value]) => [name, foreign(Array.isArray(value) ? value.join(", ") : String(value))]),
      ["Asked at", moment(job.created_at)],
    ])),
    h("section", {}, h("div", { class: "head" }, h("h2", {}, "What happened"), (job.mine || mayAdmin) && logButton(job)), stages, log),
  ];
}

function logButton(job) {
  return action("Log", "log", base(job.model), () => showLog(job));
}

function noteOf({ kind, body }) {
  if (kind === "state") return `${STATES[body.state] ?? body.state}${body.reason ? `: ${body.reason}` : ""}`;
  return body.message ?? body.text ?? JSON.stringify(body);
}

/** The history of a model: its jobs as rows. */
export function history(jobs) {
  return table("Jobs of this model", [
    ["Asked", (job) => h("a", { href: `#/jobs/${job.id}` }, moment(job.created_at))],
    ["Budget", wanted],
    ["Rounding", (job) => job.in_words.rounding],
    ["Size", ({ result }) => (result.planned_bytes ? size(result.planned_bytes, 3) : ""), true],
    ["Closeness", (job) => job.in_words.short ?? ""],
    ["State", (job) => h("span", { class: "state", "data-state": job.state }, STATES[job.state] ?? job.state)],
    ["By", (job) => foreign(job.watchers.join(", ") || job.owner)],
  ], jobs);
}
