// The result of a job: what it is, how close it is beside uniform 4-bit, how to use it, and where it lies on the curve.

import { ask } from "./api.js";
import { CurveChart, legend } from "./curve.js";
import { announce, foreign, h, facts, table } from "./dom.js";
import { downloads } from "./downloads.js";
import { strip } from "./strip.js";
import { base, duration, figures, interval, size, wanted } from "./words.js";

const POINTS = 60;
const UNIFORM = "4/64";

/** The sections of a job that is done. */
export async function resultOf(job, signal) {
  if (job.state !== "done" || !job.artifact) return [];
  const isModel = Boolean(job.budget);
  const [files, picture] = await Promise.all([
    downloads([job], signal), isModel ? pictures(job, signal).catch(() => []) : []]);
  return [
    h("section", {}, h("h2", {}, "Result"),
      h("div", { class: "card result" }, isModel && h("p", { class: "big" }, size(job.result.planned_bytes)), resultFacts(job),
        isModel && copyLines(job),
        h("p", {}, h("a", { href: `#/models/${job.identity}` }, "Same model, another budget")))),
    ...picture,
    h("section", {}, h("h2", {}, "Files"), ...files),
  ];
}

function resultFacts({ result }) {
  const kl = result.predicted_kl;
  const measured = result.closeness;
  return facts([
    ["Bits per weight", result.bits_per_weight && figures(result.bits_per_weight, 3)],
    ["Measured KL", measured && [interval(measured.kl), h("small", {}, `same first word ${figures(100 * measured.top1.value, 3)} %`)]],
    ["Predicted KL", kl && [figures(kl, 3), h("small", {}, `${figures(result.predicted_low, 2)} to ${figures(result.predicted_high, 2)} nats per token`)]],
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
  const [curve, own, uniform] = await Promise.all([
    ask(`/v1/models/${job.identity}/curve?${query}`, { signal }),
    plan(`${job.result.planned_bytes}B`, optionsOf(job, ["formats", "lock", "veto_db", "min_bits", "max_bits", "ignore_floors", "compat"])),
    plan("min", { formats: [UNIFORM], ignore_floors: ["*"] })]);
  const made = [job.result.planned_bytes];
  const chart = new CurveChart({ points: curve.points, made, onChoose: () => {} });
  chart.choose(chart.nearest(job.result.planned_bytes));
  return [
    h("section", {}, h("h2", {}, "Beside uniform 4-bit"), comparison(job, uniform)),
    h("section", { class: "card" }, h("h2", {}, "Budget and loss"), chart.element, legend(chart.points, made)),
    h("section", { class: "card" }, h("h2", {}, "Bits per layer"), strip(own.units)),
  ];
}

function comparison({ result, ...job }, uniform) {
  const measured = result.closeness?.kl;
  const rows = [
    { name: `this model, ${wanted(job)}`, nbytes: result.planned_bytes, bits: result.bits_per_weight,
      kl: result.predicted_kl && { value: result.predicted_kl, low: result.predicted_low, high: result.predicted_high }, measured },
    { name: `uniform ${UNIFORM}`, nbytes: uniform.planned_bytes, bits: uniform.bits_per_weight, kl: uniform.predicted_kl },
  ];
  return table("Comparison with uniform 4-bit", [
    ["Model", ({ name }) => name],
    ["Size", ({ nbytes }) => size(nbytes), true],
    ["Bits per weight", ({ bits }) => figures(bits, 3), true],
    ["Predicted KL", ({ kl }) => (kl ? interval(kl) : "–"), true],
    ["Measured KL", (row) => (row.measured ? interval(row.measured) : "–"), true],
  ], rows);
}

function optionsOf({ options }, names) {
  return Object.fromEntries(names.filter((name) => name in options).map((name) => [name, options[name]]));
}
