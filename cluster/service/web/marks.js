// What stands beside a curve: models that were made, uniform models, devices. Drawn, and in words.

import { svg } from "./dom.js";
import { memory, size } from "./words.js";

const NEAR = 46; // pixels between the names of two marks
const LEVEL = 14;
const CONVERTED = "4/64"; // the format of `mlx_lm.convert -q`, which jobs measure too

/** The marks of a chart: {kind, name, nbytes, kl, top, says}, by size; `top` is what the chart must have room for. */
export function marksOf({ uniform = [], devices = [], jobs = [] }) {
  const rooms = Map.groupBy(devices.filter(({ budget_bytes: room, verdict }) => room && verdict === "fits"), ({ budget_bytes: room }) => room);
  const measured = new Map(jobs.filter(({ result }) => result.uniform).map((job) => [job.result.uniform.weight_bytes, job]));
  const measuredAs = ({ format, planned_bytes: nbytes }) => (format === CONVERTED ? measured.get(nbytes) : undefined);
  return [
    ...uniform.map((point) => ({
      kind: "uniform", name: point.format.replace("/64", " bit"), nbytes: point.planned_bytes,
      kl: measuredAs(point)?.result.uniform.kl ?? point.predicted_kl,
      says: [`uniform ${point.format}`, size(point.planned_bytes, 3), measuredAs(point)?.in_words["4-bit"] ?? (point.is_vague ? "" : point.predicted)].filter(Boolean).join(", "),
    })),
    ...[...rooms].map(([room, here]) => ({ kind: "device", name: "", nbytes: room, says: `room of ${here.map((device) => `${device.chip}, ${memory(device.memory_bytes)}`).slice(0, 3).join("; ")}${here.length > 3 ? ` and ${here.length - 3} others` : ""}` })),
    ...jobs.filter(({ result }) => result.planned_bytes).map((job) => ({
      kind: job.result.closeness ? "measured" : "made", name: "", nbytes: job.result.planned_bytes,
      kl: job.result.closeness?.kl, says: job.in_words.short ? `made: ${job.in_words.short}` : "made already",
    })),
  ].map((mark) => ({ ...mark, top: mark.kind === "measured" ? mark.kl.high : mark.kl?.value ?? 0 })).sort((a, b) => a.nbytes - b.nbytes);
}

/** The marks of sizes from…to, in words. */
export function said(marks, from, to) {
  return [...new Set(marks.filter(({ nbytes }) => nbytes >= from && nbytes < to).map(({ says }) => says))];
}

/** The marks on the scales `x` and `y`; what has no height of its own stands on the curve or on the axis. */
export function drawn(marks, { x, y, bottom, onCurve }) {
  const named = []; // marks with a name that is written: [x, y, text element]
  return marks.map((mark) => {
    const here = x(mark.nbytes);
    if (mark.kind === "made") return svg("path", { class: "made", d: `M${here} ${bottom}l-6 -10h12z` });
    if (mark.kind === "device") return svg("rect", { class: "device", x: here - 4, y: y(onCurve(mark.nbytes)) - 4, width: 8, height: 8 });
    const level = y(mark.kl?.value ?? onCurve(mark.nbytes));
    if (mark.kind === "measured") return svg("g", { class: "made" },
      svg("line", { x1: here, x2: here, y1: y(mark.kl.low), y2: Math.max(0, y(mark.kl.high)) }), svg("circle", { cx: here, cy: level, r: 4.5 }));
    return svg("g", { class: "uniform" }, svg("path", { d: `M${here} ${level - 5}l5 5l-5 5l-5 -5z` }), nameOf(mark, here, level, named));
  });
}

/** The name of a mark, beside it; marks close to each other share one. */
function nameOf({ name }, x, y, named) {
  const near = named.find((other) => Math.abs(other.x - x) < NEAR && Math.abs(other.y - y) < LEVEL);
  if (near) {
    near.text.textContent += `, ${name}`;
    near.text.setAttribute("x", Math.max(near.x, x) + 9); // behind all of them
    return null;
  }
  const text = svg("text", { x: x + 9, y, dy: "-0.3em" }, name);
  named.push({ x, y, text });
  return text;
}
