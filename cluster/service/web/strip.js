// Bits per layer as a picture: a column for every layer, a row for every role, darker where more bits are kept.

import { h, svg } from "./dom.js";
import { table } from "./tables.js";
import { figures, size } from "./words.js";

const LABEL = 84;
const ROW = 24;
const HEAD = 18;
const WIDEST = 48; // of a cell, where there are few layers
const NARROWEST = 17; // a narrower cell has no room for its figure: the layers continue below
const BETWEEN = 14; // pixels between the bands of layers
export const LEVELS = [2, 3, 4, 5, 6, 8, 16];

const ROLES = {
  embedding: "embedding", layer_embedding: "layer emb.", position: "position", head: "head", router: "router",
  q: "attention q", k: "attention k", v: "attention v", kv: "attention kv", qkv: "attention qkv", o: "attention o",
  gate: "mlp gate", up: "mlp up", gate_up: "mlp gate, up", down: "mlp down", expert_gate: "expert gate",
  expert_up: "expert up", expert_down: "expert down", mixer_in: "mixer in", mixer_out: "mixer out", index: "index",
  unknown: "unknown",
};

/** The units of a plan in rows of roles, each a map from layer to what the units there have on average. */
export function rows(units) {
  const byRole = new Map();
  for (const unit of units) {
    if (!byRole.has(unit.role)) byRole.set(unit.role, new Map());
    const cells = byRole.get(unit.role);
    cells.set(unit.layer, [...(cells.get(unit.layer) ?? []), unit]);
  }
  const order = Object.keys(ROLES);
  return [...byRole].sort(([a], [b]) => order.indexOf(a) - order.indexOf(b));
}

/** Bits of a weight as its format names them: without scales and biases, which `unit.bits` counts too. */
function namedBits({ format, bits }) {
  if (format === "keep") return bits;
  return format.endsWith("fp4") ? 4 : Number.parseInt(format, 10);
}

/** Mean bits of units, each as heavy as its bytes. */
function meanBits(units) {
  const nbytes = units.reduce((sum, unit) => sum + unit.nbytes, 0) || 1;
  return units.reduce((sum, unit) => sum + namedBits(unit) * unit.nbytes, 0) / nbytes;
}

function level(bits) {
  return LEVELS.findLast((each) => each <= bits + 1e-9) ?? LEVELS[0];
}

/** The picture with its legend, its reading in words, and a table on demand. */
export function strip(units) {
  const picture = h("div", { class: "strip" });
  const readout = h("p", { class: "readout", "aria-hidden": "true" }, "Point at a cell to read it.");
  const found = rows(units);
  new ResizeObserver(([entry]) => draw(picture, found, Math.floor(entry.contentRect.width), readout)).observe(picture);
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", inWords(found));
  const used = LEVELS.filter((each) => units.some((unit) => level(namedBits(unit)) === each));
  return h("figure", {},
    picture,
    h("figcaption", {},
      h("ul", { class: "legend" }, used.map((bits) =>
        h("li", {}, h("i", { class: `key bits-${bits}` }), bits === 16 ? "kept as it is" : `${bits} bits`))),
      readout,
    ),
    h("details", {}, h("summary", {}, `All ${units.length} units as a table`), unitTable(units)),
  );
}

function inWords(found) {
  const told = found.map(([role, cells]) => {
    const bits = [...cells.values()].map(meanBits);
    const [least, most] = [Math.min(...bits), Math.max(...bits)].map((value) => figures(value, 2));
    return `${ROLES[role] ?? role} ${least === most ? least : `${least} to ${most}`}`;
  });
  return `Bits by role over the layers: ${told.join("; ")}.`;
}

function draw(picture, found, width, readout) {
  if (width < 160 || picture.dataset.width === String(width)) return;
  picture.dataset.width = String(width);
  const layers = [...new Set(found.flatMap(([, cells]) => [...cells.keys()]))].filter((layer) => layer >= 0);
  layers.sort((a, b) => a - b);
  const bands = bandsOf(layers, width - LABEL);
  const cell = Math.min(WIDEST, (width - LABEL) / bands[0].length);
  const read = (units) => readout.replaceChildren(...readingOf(units));
  let top = 0;
  const drawn = bands.map((band, index) => {
    const here = found.map(([role, cells]) => [role, [...cells].filter(([layer]) => (layer < 0 ? index === 0 : band.includes(layer)))]);
    const shown = here.filter(([, cells]) => cells.length);
    const group = svg("g", { transform: `translate(0 ${top})` }, oneBand(band, shown, cell, read));
    top += HEAD + shown.length * ROW + BETWEEN;
    return group;
  });
  const tall = top - BETWEEN;
  picture.replaceChildren(svg("svg", { width, height: tall, viewBox: `0 0 ${width} ${tall}` }, drawn));
}

/** Layers in bands of equal length, as few as have room for their figures; one band without layers. */
export function bandsOf(layers, room) {
  const most = Math.max(1, Math.floor(room / NARROWEST));
  const count = Math.max(1, Math.ceil(layers.length / most));
  const length = Math.max(1, Math.ceil(layers.length / count));
  return layers.length ? Array.from({ length: count }, (_, index) => layers.slice(index * length, (index + 1) * length)) : [[-1]];
}

function oneBand(band, rows, cell, read) {
  const every = [1, 2, 5, 10, 20, 50].find((step) => step * cell >= 26) ?? 100;
  return [
    band.filter((layer) => layer >= 0 && layer % every === 0).map((layer) => svg("text", {
      class: "layer", x: LABEL + (band.indexOf(layer) + 0.5) * cell, y: 11, "text-anchor": "middle",
    }, layer)),
    rows.map(([role, cells], row) => svg("g", { transform: `translate(0 ${HEAD + row * ROW})` },
      svg("text", { class: "role", x: LABEL - 8, y: ROW / 2, dy: "0.32em", "text-anchor": "end" }, ROLES[role] ?? role),
      cells.map(([layer, units]) => {
        const whole = layer < 0;
        const x = whole ? LABEL : LABEL + band.indexOf(layer) * cell;
        return oneCell(units, x, whole ? Math.max(cell * band.length, WIDEST) : cell, () => read(units));
      }),
    )),
  ];
}

function oneCell(units, x, wide, onPoint) {
  const bits = meanBits(units);
  const mark = svg("text", { x: x + wide / 2, y: ROW / 2, dy: "0.34em", "text-anchor": "middle" },
    figures(bits, 2));
  const gap = wide > 6 ? 1 : 0;
  return svg("g", { class: `cell bits-${level(bits)}`, onpointerenter: onPoint },
    svg("rect", { x: x + gap / 2, y: 1, width: Math.max(1, wide - gap), height: ROW - 2, rx: gap ? 2 : 0 }), mark);
}

function readingOf(units) {
  const [first] = units;
  const more = units.length > 1 ? ` and ${units.length - 1} more` : "";
  return [h("strong", {}, first.format), ` ${first.path}${more}, ${size(units.reduce((sum, unit) => sum + unit.nbytes, 0))}`];
}

function unitTable(units) {
  return table("Format of every unit", [
    ["Unit", (unit) => h("code", {}, unit.path)],
    ["Format", (unit) => unit.format],
    ["Bits per weight", (unit) => figures(unit.bits, 3), true],
    ["Size", (unit) => size(unit.nbytes), true],
  ], units);
}
