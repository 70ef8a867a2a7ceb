// The result of a job: what it is, how close it is beside uniform 4-bit, how to use it, and where it lies on the curve.

import { ask } from "./api.js";
import { CurveChart, legend } from "./curve.js";
import { announce, foreign, h } from "./dom.js";
import { downloads } from "./downloads.js";
import { marksOf } from "./marks.js";
import { strip } from "./strip.js";
import { facts, table } from "./tables.js";
import { base, duration, figures, size, wanted } from "./words.js";

const POINTS = 60;
const UNIFORM = "4/64"; // the format of `mlx_lm.convert -q`

/** The sections of a job that is done. */
export async function resultOf(job, signal) {
  if (job.state !== "done" || !job.artifact) return [];
  const isModel = Boolean(job.budget);
  const [files, picture] = await Promise.all([
    downloads([job], signal), isModel ? pictures(job, signal).catch(() => []) : []]);
  return [
    h("section", {}, h("h2", {}, "Result"),
      h("div", { class: "card result" }, isModel && h("p", { class: "big" }, size(job.result.planned_bytes)),
        job.in_words["4-bit"] && h("p", { class: "closeness" }, job.in_words.short), resultFacts(job),
        job.in_words.WARNING && h("p", { class: "wrong" }, job.in_words.WARNING),
        isModel && copyLines(job),
        h("p", {}, h("a", { href: `#/models/${job.identity}` }, "Same model, another budget")))),
    ...picture,
    h("section", {}, h("h2", {}, "Files"), ...files),
  ];
}

function resultFacts({ result, in_words: words }) {
  return facts([
    ["Bits per weight", result.bits_per_weight && figures(result.bits_per_weight, 3)],
    ["Closeness", words.closeness],
    ["Uniform 4-bit", words["4-bit"] && `${size(result.uniform.weight_bytes, 4)}: ${words["4-bit"]}`],
    ["Checks", "verified" in result && (result.verified ? "loads and runs in stock mlx_lm" : "failed")],
    ["Took", Number.isFinite(result.seconds) ? duration(result.seconds) : ""],
    ["Taken from earlier results", result.reused_bytes ? size(result.reused_bytes, 3) : ""],
    ["Notices", result.notices?.length ? foreign(result.notices.join(" ")) : ""],
  ]);
}

/** The commands that fetch and run the model, each with a button that copies it. */
function copyLines(job) {
  const folder = `${base(job.model)}-${job.budget}`.replace(/[^\w.-]+/g, "-");
  return h("ul", { class: "commands" }, [
    `mint download ${job.id} --output ${folder}`, `mlx_lm.chat --model ${folder}`,
  ].map((line) => h("li", {}, h("code", {}, line), h("button", {
    type: "button", class: "quiet", "aria-label": `Copy: ${line}`,
    onclick: async () => { await navigator.clipboard.writeText(line); announce("Copied"); },
  }, "Copy"))));
}

/** The point of the job on the curve, the comparison with uniform 4-bit, and its bits by layer. */
async function pictures(job, signal) {
  const options = optionsOf(job, ["rounding", "dtype", "loader", "objective"]);
  const query = new URLSearchParams({ ...options, points: POINTS });
  const plan = (budget, more = {}) => ask("/v1/plans", {
    method: "POST", signal, body: { model: job.identity, budget, options: { ...options, ...more } } });
  const [curve, own] = await Promise.all([
    ask(`/v1/models/${job.identity}/curve?${query}`, { signal }),
    plan(`${job.result.planned_bytes}B`, optionsOf(job, ["formats", "lock", "veto_db", "min_bits", "max_bits", "ignore_floors", "compat"]))]);
  const uniform = curve.uniform.find(({ format }) => format === UNIFORM);
  const marks = marksOf({ uniform: curve.uniform, jobs: [job] });
  const chart = new CurveChart({ points: curve.points, marks, onChoose: () => {} });
  chart.choose(chart.nearest(job.result.planned_bytes));
  return [
    h("section", {}, h("h2", {}, "Beside uniform 4-bit"), uniform ? comparison(job, uniform) : h("p", { class: "empty" }, "Nothing of this model has that format.")),
    h("section", { class: "card" }, h("h2", {}, "Budget and loss"), chart.element, legend(chart.points, marks)),
    h("section", { class: "card" }, h("h2", {}, "Bits per layer"), strip(own.units)),
  ];
}

function comparison({ result, in_words: words, ...job }, uniform) {
  const rows = [
    { name: `this model, ${wanted(job)}`, nbytes: result.planned_bytes, bits: result.bits_per_weight, closeness: words.closeness },
    { name: `uniform ${UNIFORM}`, nbytes: uniform.planned_bytes, bits: uniform.bits_per_weight,
      closeness: words["4-bit"] ?? (uniform.predicted && !uniform.is_vague ? uniform.predicted : "not measured") },
  ];
  return table("Comparison with uniform 4-bit", [
    ["Model", ({ name }) => name],
    ["Size", ({ nbytes }) => size(nbytes), true],
    ["Bits per weight", ({ bits }) => figures(bits, 3), true],
    ["Closeness", ({ closeness }) => closeness ?? "–"],
  ], rows);
}

function optionsOf({ options }, names) {
  return Object.fromEntries(names.filter((name) => name in options).map((name) => [name, options[name]]));
}
