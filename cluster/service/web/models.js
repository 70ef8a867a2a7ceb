// The models of the service, and the page of one: its curve, the plan of a point, its artifacts, its history.

import { ask, person } from "./api.js";
import { CurveChart, describe, legend } from "./curve.js";
import { alertOf, foreign, h } from "./dom.js";
import { artifactCard, makerOf } from "./downloads.js";
import { history } from "./jobs.js";
import { marksOf } from "./marks.js";
import { PlanPanel } from "./plan.js";
import { facts, table } from "./tables.js";
import { base, figures, minutes, short, size } from "./words.js";

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
      ? h("div", { class: "artifacts" }, model.artifacts.map((artifact) => artifactCard(artifact, makerOf(model.jobs, artifact))))
      : h("p", { class: "empty" }, "Nothing was made of this model yet.")),
    h("section", {}, h("h2", {}, "History"), model.jobs.length ? history(model.jobs) : h("p", { class: "empty" }, "No jobs yet.")),
  ];
}

function notAnalyzed(name, maySubmit) {
  return h("section", { class: "card" }, h("h2", {}, "Budget and loss"),
    h("p", {}, "This model was not measured yet. Once it is, every budget takes seconds, for everybody."),
    maySubmit && submitButton("Analyze it", { model: name, budgets: [], options: {} }));
}

/** A button that submits a request, and a place that links to the job. */
function submitButton(title, request) {
  const note = h("p", { class: "taken", role: "status" });
  const button = h("button", { type: "button", class: "primary", onclick: async () => {
    button.disabled = true;
    try {
      const { jobs: [job] } = await ask("/v1/jobs", { method: "POST", body: request });
      note.replaceChildren("Submitted: ", h("a", { href: `#/jobs/${job.id}` }, "follow it"));
    } catch (error) {
      note.replaceChildren(foreign(error.message));
      button.disabled = false;
    }
  } }, title);
  return [button, note];
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
      const marks = marksOf({ uniform: curve.uniform, devices: placed, jobs: model.jobs });
      const chart = new CurveChart({ points, marks, onChoose: (point) => panel.show(point) });
      const isVague = points.some((point) => point.is_vague) && !model.analyses[rounding.value].probed;
      place.replaceChildren(
        h("div", { class: "card" }, chart.element, legend(chart.points, marks),
          isVague && maySubmit && (await probeOffer(name, options, signal)),
          h("details", {}, h("summary", {}, "The points as a table"), pointTable(chart)),
          h("details", {}, h("summary", {}, "What stands beside the curve, as a table"), markTable(marks))),
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
  return points[far.indexOf(Math.min(...far))];
}

/** A button that submits probes of the model, which narrow the band of its curve, with the expected time. */
async function probeOffer(name, options, signal) {
  const request = { model: name, budgets: [], options: { ...options, probe: true } };
  const { forecasts: [{ stages }] } = await ask("/v1/jobs/forecasts", { method: "POST", signal, body: request });
  return h("div", { class: "offer" }, h("p", { class: "hint" }, "Predictions are vague: the model was not probed."),
    ...submitButton(`Probe this model: about ${minutes(stages.probing ?? 0)}`, request));
}

function markTable(marks) {
  return table("Beside the curve", [
    ["Size", ({ nbytes }) => size(nbytes, 3), true],
    ["Meaning", ({ says }) => says],
  ], marks);
}

function pointTable(chart) {
  return table("Points of the curve", [
    ["Budget", (point) => h("button", { type: "button", class: "link", "aria-label": `Plan of ${describe(point)}`,
      onclick: () => chart.choose(point) }, size(point.budget_bytes)), true],
    ["Bits per weight", (point) => figures(point.bits_per_weight, 3), true],
    ["Closeness", (point) => point.predicted || "–"],
    ["Loss", (point) => figures(point.loss, 3), true],
  ], chart.points);
}
