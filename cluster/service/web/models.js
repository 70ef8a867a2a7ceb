// The models of the service, and the page of one: its curve, the plan of a point, its artifacts, its history.

import { ask, person } from "./api.js";
import { CurveChart, describe, legend } from "./curve.js";
import { alertOf, facts, foreign, h, table } from "./dom.js";
import { artifactCard } from "./downloads.js";
import { history } from "./jobs.js";
import { PlanPanel } from "./plan.js";
import { base, figures, short, size } from "./words.js";

const POINTS = 60;

/** All models below the service's folders. */
export async function modelsPage({ signal }) {
  const { models } = await ask("/v1/models", { signal });
  return [
    h("h1", {}, "Models"),
    models.length ? table("Models", [
      ["Model", ({ name, identity }) => (identity ? h("a", { href: `#/models/${identity}` }, foreign(name)) : foreign(name))],
      ["Size", ({ nbytes }) => (nbytes ? size(nbytes, 3) : ""), true],
      ["Analyzed", ({ analyzed, reason }) => (reason && foreign(reason)) || (analyzed ? "yes" : "not yet")],
    ], models) : h("p", { class: "empty" }, "There is no model below the service's folders."),
  ];
}

/** One model. */
export async function modelPage({ key, signal }) {
  const [model, { maySubmit }] = await Promise.all([ask(`/v1/models/${key}`, { signal }), person(signal)]);
  const name = model.names[0] ?? short(model.identity);
  return [
    h("p", { class: "path" }, h("a", { href: "#/models" }, "Models")),
    h("h1", {}, foreign(base(name))),
    facts([
      ["Name", model.names.length > 1 || name !== base(name) ? foreign(model.names.join(", ")) : ""],
      ["Kind", model.model_type],
      ["Size", model.source_bytes && size(model.source_bytes)],
      ["Layers", model.layers || ""],
      ["Identity", h("code", { title: model.identity }, short(model.identity))],
    ]),
    ...(model.analyses.length ? await curveSection(model, name, maySubmit, signal) : [notAnalyzed(name, maySubmit)]),
    h("section", {}, h("h2", {}, "Downloads"), model.artifacts.length
      ? h("div", { class: "artifacts" }, model.artifacts.map((artifact) => artifactCard(artifact, jobOf(model.jobs, artifact))))
      : h("p", { class: "empty" }, "Nothing was made of this model yet.")),
    h("section", {}, h("h2", {}, "History"), model.jobs.length ? history(model.jobs) : h("p", { class: "empty" }, "No jobs yet.")),
  ];
}

/** The job that made an artifact: a model's own, or the first that stored an analysis. */
function jobOf(jobs, { kind, digest }) {
  const done = jobs.filter(({ state }) => state === "done");
  return done.find(({ artifact }) => artifact === digest)
    ?? (kind === "analysis" ? done.findLast(({ result }) => digest === result.analysis) : undefined);
}

function notAnalyzed(name, maySubmit) {
  const note = h("p", { class: "taken", role: "status" });
  const button = h("button", { type: "button", class: "primary", onclick: async () => {
    button.disabled = true;
    try {
      const { jobs: [job] } = await ask("/v1/jobs", { method: "POST", body: { model: name, budgets: [], options: {} } });
      note.replaceChildren("Submitted: ", h("a", { href: `#/jobs/${job.id}` }, "follow it"));
    } catch (error) {
      note.replaceChildren(foreign(error.message));
      button.disabled = false;
    }
  } }, "Analyze it");
  return h("section", { class: "card" }, h("h2", {}, "Budget and loss"),
    h("p", {}, "This model was not measured yet. Once it is, every budget takes seconds, for everybody."), maySubmit && button, note);
}

async function curveSection(model, name, maySubmit, signal) {
  const place = h("div", { class: "columns wide" });
  const picture = h("div", {});
  const loaders = new Set(model.analyses.map((each) => each.loader));
  const rounding = h("select", { id: "rounding", onchange: () => fill() }, model.analyses.map((each, index) =>
    h("option", { value: index }, [each.rounding, each.dtype, loaders.size > 1 && each.loader, each.probed && "probed"].filter(Boolean).join(", "))));

  async function fill() {
    try {
      const { rounding: wanted, dtype, loader } = model.analyses[rounding.value];
      const options = { rounding: wanted, ...(dtype ? { dtype } : {}), ...(loaders.size > 1 ? { loader } : {}) };
      const query = new URLSearchParams({ ...options, points: POINTS });
      const [curve, { devices }] = await Promise.all([
        ask(`/v1/models/${model.identity}/curve?${query}`, { signal }), ask("/v1/devices", { signal })]);
      const knees = new Set(curve.knees);
      const points = curve.points.map((point) => ({ ...point, knee: knees.has(point.budget_bytes) }));
      const known = new Map(devices.map((device) => [device.name, device]));
      const placed = curve.devices.map((each) => ({ ...known.get(each.name), ...each }));
      const panel = new PlanPanel({ identity: model.identity, name, options, devices: placed, maySubmit, signal });
      const made = model.jobs.map((job) => job.result?.planned_bytes).filter(Boolean);
      const chart = new CurveChart({ points, made, onChoose: (point) => panel.show(point) });
      place.replaceChildren(
        h("div", { class: "card" }, chart.element, legend(chart.points, made),
          h("details", {}, h("summary", {}, "The points as a table"), pointTable(chart))),
        panel.element);
      picture.replaceChildren(panel.picture);
      chart.choose(start(chart.points));
    } catch (error) {
      if (!signal.aborted) place.replaceChildren(alertOf(error));
    }
  }

  await fill();
  return [
    h("section", { "aria-labelledby": "curve" },
      h("div", { class: "head" }, h("h2", { id: "curve" }, "Budget and loss"),
        h("label", { class: "inline", for: "rounding" }, "Rounding ", rounding)),
      place),
    h("section", { class: "card", "aria-labelledby": "bits" }, h("h2", { id: "bits" }, "Bits per layer"), picture),
  ];
}

/** The first point to show: the one nearest to 4.5 bits per weight. */
function start(points) {
  const far = points.map((point) => Math.abs(point.bits_per_weight - 4.5));
  return far.indexOf(Math.min(...far));
}

function pointTable(chart) {
  return table("Points of the curve", [
    ["Budget", (point) => h("button", { type: "button", class: "link", "aria-label": `Plan of ${describe(point)}`,
      onclick: () => chart.choose(chart.points.indexOf(point)) }, size(point.budget_bytes)), true],
    ["Bits per weight", (point) => figures(point.bits_per_weight, 3), true],
    ["Predicted KL", (point) => (point.predicted_kl ? figures(point.predicted_kl.value, 3) : "–"), true],
    ["Loss", (point) => figures(point.loss, 3), true],
  ], chart.points);
}
