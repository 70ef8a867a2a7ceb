// The curve of budget and loss: points on axes, walked with the arrow keys, chosen with Enter or a click.

import { h, svg } from "./dom.js";
import { drawn, marksOf, said } from "./marks.js";
import { fitting, linear, ticks } from "./scale.js";
import { explained } from "./terms.js";
import { figures, size, tick } from "./words.js";

const MARGIN = { left: 50, right: 14, top: 14, bottom: 46 };
const LEAP = 10; // points, for Page Up and Page Down
const USUAL = [3, 6]; // bits per weight that people ask for: the part that is also drawn on linear axes
const FEW = 4; // points are no curve
let charts = 0;

/** The drawn figure of a point: the predicted KL where there is one, else the loss. */
function height(point) {
  return point.predicted_kl?.value ?? point.loss;
}

/** A point in words. */
export function describe(point) {
  return `${size(point.budget_bytes)}, ${figures(point.bits_per_weight, 3)} bits per weight, ${expected(point)}`;
}

function expected(point) {
  return point.predicted || `loss ${figures(point.loss, 3)}`;
}

/** A chart that calls `onChoose(point)`; `marks` are the models and devices beside the curve, as `marksOf` makes them. */
export class CurveChart {
  #all;
  #points;
  #marks;
  #isLinear = false;
  #onChoose;
  #chosen = -1;
  #cursor = 0;
  #width = 0;

  constructor({ points, marks = marksOf({}), onChoose }) {
    this.#all = this.#points = points.filter((point) => height(point) > 0);
    this.#marks = marks;
    this.#onChoose = onChoose;
    this.readout = h("output", { class: "readout", "aria-hidden": "true" });
    this.chart = h("div", {
      class: "chart",
      role: "slider",
      tabindex: "0",
      "aria-label": "Budget: arrow keys move along the curve, Enter shows the plan",
      "aria-valuemin": "0",
      "aria-valuemax": String(this.#points.length - 1),
      onkeydown: (event) => this.#key(event),
      onpointermove: (event) => this.#point(event),
      onpointerleave: () => this.#move(this.#chosen < 0 ? this.#cursor : this.#chosen),
      onclick: (event) => { this.#point(event); this.choose(this.#points[this.#cursor]); },
    });
    this.element = h("div", { class: "curve" }, this.#usual.length >= FEW && this.#views(), this.readout, this.chart);
    new ResizeObserver(([entry]) => this.#fit(Math.floor(entry.contentRect.width))).observe(this.chart);
  }

  /** All points, whatever part of them is drawn. */
  get points() {
    return this.#all;
  }

  get #usual() {
    return this.#all.filter(({ bits_per_weight: bits }) => bits >= USUAL[0] && bits <= USUAL[1]);
  }

  /** Choose a point as if it was clicked; where the part that is drawn has it not, the whole is drawn. */
  choose(point) {
    if (!this.#points.includes(point)) {
      this.#show(false);
      for (const input of this.element.querySelectorAll(".views input")) input.checked = input.value === "whole";
    }
    this.#chosen = this.#points.indexOf(point);
    this.#move(this.#chosen);
    this.#onChoose(point);
  }

  /** The point whose budget is nearest. */
  nearest(nbytes) {
    const far = this.#all.map((point) => Math.abs(point.budget_bytes - nbytes));
    return this.#all[far.indexOf(Math.min(...far))];
  }

  /** The choice between the whole curve and its usual part. */
  #views() {
    const name = `view-${++charts}`;
    const view = (value, label) => h("label", {},
      h("input", { type: "radio", name, value, checked: value === "whole", onchange: () => this.#show(value !== "whole") }), label);
    return h("div", { class: "views", role: "radiogroup", "aria-label": "Part of the curve" },
      view("whole", "Whole"), view("usual", `${USUAL.join(" to ")} bits per weight, linear`));
  }

  #show(isLinear) {
    const [chosen, cursor] = [this.#points[this.#chosen], this.#points[this.#cursor]];
    this.#isLinear = isLinear;
    this.#points = isLinear ? this.#usual : this.#all;
    this.#chosen = this.#points.indexOf(chosen);
    this.chart.setAttribute("aria-valuemax", String(this.#points.length - 1));
    if (this.#width) this.#draw();
    this.#move(Math.max(0, this.#points.includes(cursor) ? this.#points.indexOf(cursor) : this.#chosen));
  }

  #key(event) {
    const last = this.#points.length - 1;
    const places = {
      ArrowRight: this.#cursor + 1,
      ArrowUp: this.#cursor + 1,
      ArrowLeft: this.#cursor - 1,
      ArrowDown: this.#cursor - 1,
      PageUp: this.#cursor + LEAP,
      PageDown: this.#cursor - LEAP,
      Home: 0,
      End: last,
    };
    if (event.key in places) this.#move(Math.min(last, Math.max(0, places[event.key])));
    else if (event.key === "Enter" || event.key === " ") this.choose(this.#points[this.#cursor]);
    else return;
    event.preventDefault();
  }

  #point(event) {
    if (!this.#width) return;
    const x = event.clientX - this.chart.getBoundingClientRect().left;
    const far = this.#points.map((point) => Math.abs(this.#x(point.budget_bytes) - x));
    this.#move(far.indexOf(Math.min(...far)));
  }

  #move(index) {
    this.#cursor = index;
    const point = this.#points[index];
    this.chart.setAttribute("aria-valuenow", String(index));
    const beside = this.#beside(index);
    this.chart.setAttribute("aria-valuetext", [describe(point), point.knee ? "a knee" : "", ...beside].filter(Boolean).join(", "));
    this.readout.replaceChildren(
      h("strong", {}, size(point.budget_bytes)),
      h("span", {}, `${figures(point.bits_per_weight, 3)} bits per weight`),
      h("span", {}, expected(point)),
      h("span", { class: "beside" }, beside.join("; ")),
    );
    this.#mark();
  }

  /** The marks that no other drawn point is nearer to, in words. */
  #beside(index) {
    const sizes = this.#points.map((point) => point.budget_bytes);
    const from = index ? (sizes[index - 1] + sizes[index]) / 2 : 2 * sizes[0] - (sizes[1] ?? sizes[0]);
    const to = index + 1 < sizes.length ? (sizes[index] + sizes[index + 1]) / 2 : Infinity;
    return said(this.#marks, from, to);
  }

  #fit(width) {
    if (width === this.#width || width < 120) return;
    this.#width = width;
    this.#draw();
    this.#mark();
  }

  #draw() {
    const points = this.#points;
    const tall = Math.round(Math.min(480, Math.max(260, this.#width * 0.64)));
    const [right, bottom] = [this.#width - MARGIN.right, tall - MARGIN.bottom];
    const sizes = points.map((point) => point.budget_bytes);
    const shown = this.#marks.filter(({ nbytes }) => nbytes >= sizes[0] * (this.#isLinear ? 1 : 0.8) && nbytes <= sizes.at(-1));
    const lows = points.map((point) => point.predicted_kl?.low ?? point.loss);
    const highs = points.map((point) => point.predicted_kl?.high ?? point.loss);
    const places = shown.map(({ nbytes }) => nbytes);
    const levels = [...points.map(height), ...shown.map(({ top }) => top)];
    this.#x = (this.#isLinear ? linear : fitting)(Math.min(...sizes, ...places), Math.max(...sizes), MARGIN.left, right);
    this.#y = this.#isLinear
      ? linear(0, 1.05 * Math.max(...levels), bottom, MARGIN.top)
      : fitting(Math.min(...lows), Math.max(...highs, ...levels), bottom, MARGIN.top);
    this.#bottom = bottom;
    const dense = (right - MARGIN.left) / points.length < 7;
    const line = points.map((point) => `${this.#x(point.budget_bytes)},${this.#y(height(point))}`);
    const band = [
      ...points.map((point, index) => `${this.#x(point.budget_bytes)},${Math.max(MARGIN.top, this.#y(highs[index]))}`),
      ...points.map((point, index) => `${this.#x(point.budget_bytes)},${this.#y(lows[index])}`).reverse(),
    ];
    this.#pointer = svg("g", { class: "pointer" });
    this.#choice = svg("g", { class: "choice" });
    this.chart.replaceChildren(
      svg("svg", { width: this.#width, height: tall, viewBox: `0 0 ${this.#width} ${tall}`, "aria-hidden": "true" },
        this.#axes(right, bottom, tall),
        points.some((point) => point.predicted_kl) && svg("polygon", { class: "band", points: band.join(" ") }),
        svg("polyline", { class: "line", points: line.join(" ") }),
        points.map((point) => svg("circle", {
          class: point.knee ? "dot knee" : "dot", cx: this.#x(point.budget_bytes), cy: this.#y(height(point)),
          r: point.knee ? 5 : dense ? 1.25 : 2.5,
        })),
        drawn(shown, { x: this.#x, y: this.#y, bottom, onCurve: (nbytes) => height(this.#nearestShown(nbytes)) }),
        this.#choice,
        this.#pointer,
      ),
    );
  }

  #nearestShown(nbytes) {
    return this.#points.reduce((a, b) => (Math.abs(b.budget_bytes - nbytes) < Math.abs(a.budget_bytes - nbytes) ? b : a));
  }

  #axes(right, bottom, tall) {
    const across = ticks(this.#x, Math.max(2, Math.floor(this.#width / 75)));
    const up = ticks(this.#y, 6);
    return svg("g", { class: "axes" },
      up.map((value) => [
        svg("line", { x1: MARGIN.left, x2: right, y1: this.#y(value), y2: this.#y(value) }),
        svg("text", { x: MARGIN.left - 8, y: this.#y(value), dy: "0.32em", "text-anchor": "end" }, tick(value)),
      ]),
      across.map((value) => [
        svg("line", { class: "tick", x1: this.#x(value), x2: this.#x(value), y1: bottom, y2: bottom + 5 }),
        svg("text", { x: Math.min(this.#x(value), right - 12), y: bottom + 20, "text-anchor": "middle" }, size(value)),
      ]),
      svg("line", { class: "base", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }),
      svg("text", { class: "title", x: right, y: tall - 6, "text-anchor": "end" },
        `all weight files${this.#x.isLog ? ", logarithmic" : ""}`),
    );
  }

  #mark() {
    if (!this.#width) return;
    const place = (index) => [this.#x(this.#points[index].budget_bytes), this.#y(height(this.#points[index]))];
    const [x, y] = place(this.#cursor);
    this.#pointer.replaceChildren(
      svg("path", { d: `M${MARGIN.left} ${y}H${x}V${this.#bottom}` }),
      svg("circle", { cx: x, cy: y, r: 6 }),
    );
    const chosen = this.#chosen < 0 ? [] : [svg("circle", { cx: place(this.#chosen)[0], cy: place(this.#chosen)[1], r: 7 })];
    this.#choice.replaceChildren(...chosen);
  }

  #x;
  #y;
  #bottom;
  #pointer;
  #choice;
}

/** The meaning of the marks and the division of the axis. */
export function legend(points, marks) {
  const has = (kind) => marks.some((mark) => mark.kind === kind);
  const kl = points.some((point) => point.predicted_kl);
  const list = h("ul", { class: "legend" },
    h("li", {}, h("i", { class: "key line" }), kl ? h("span", {}, "predicted ", explained("KL divergence"), ", nats per token") : explained("loss")),
    kl && h("li", {}, h("i", { class: "key band" }), "95 % interval"),
    points.some((point) => point.knee) && h("li", {}, h("i", { class: "key knee" }), h("span", {}, explained("knee"), ": beyond it a byte buys half as much")),
    has("uniform") && h("li", {}, h("i", { class: "key uniform" }), "uniform, by mlx_lm.convert"),
    has("device") && h("li", {}, h("i", { class: "key device" }), h("span", {}, "room of a ", explained("device"))),
    has("measured") && h("li", {}, h("i", { class: "key measured" }), "made already and measured"),
    has("made") && h("li", {}, h("i", { class: "key made" }), "made already"),
  );
  return list;
}
