// The curve of budget and loss: points on axes, walked with the arrow keys, chosen with Enter or a click.

import { h, svg } from "./dom.js";
import { fitting, ticks } from "./scale.js";
import { figures, interval, size, tick } from "./words.js";

const MARGIN = { left: 50, right: 14, top: 14, bottom: 46 };
const LEAP = 10; // points, for Page Up and Page Down

/** The drawn figure of a point: the predicted KL where there is one, else the loss. */
function height(point) {
  return point.predicted_kl?.value ?? point.loss;
}

/** A point in words. */
export function describe(point) {
  const loss = point.predicted_kl ? `predicted KL ${interval(point.predicted_kl)}` : `loss ${figures(point.loss, 3)}`;
  return `${size(point.budget_bytes)}, ${figures(point.bits_per_weight, 3)} bits per weight, ${loss}`;
}

/** A chart that calls `onChoose(point)`; `made` are sizes in bytes of what was made already. */
export class CurveChart {
  #points;
  #made;
  #onChoose;
  #chosen = -1;
  #cursor = 0;
  #width = 0;

  constructor({ points, made = [], onChoose }) {
    this.#points = points.filter((point) => height(point) > 0);
    this.#made = made;
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
      onclick: (event) => { this.#point(event); this.choose(this.#cursor); },
    });
    this.element = h("div", { class: "curve" }, this.readout, this.chart);
    new ResizeObserver(([entry]) => this.#fit(Math.floor(entry.contentRect.width))).observe(this.chart);
  }

  get points() {
    return this.#points;
  }

  /** Choose the point at `index` as if it was clicked. */
  choose(index) {
    this.#chosen = index;
    this.#move(index);
    this.#onChoose(this.#points[index]);
  }

  /** The index of the point whose budget is nearest. */
  nearest(nbytes) {
    const far = this.#points.map((point) => Math.abs(point.budget_bytes - nbytes));
    return far.indexOf(Math.min(...far));
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
    else if (event.key === "Enter" || event.key === " ") this.choose(this.#cursor);
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
    this.chart.setAttribute("aria-valuetext", describe(point) + (point.knee ? ", a knee" : ""));
    this.readout.replaceChildren(
      h("strong", {}, size(point.budget_bytes)),
      h("span", {}, `${figures(point.bits_per_weight, 3)} bits per weight`),
      h("span", {}, point.predicted_kl ? `KL ${interval(point.predicted_kl)}` : `loss ${figures(point.loss, 3)}`),
    );
    this.#mark();
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
    const lows = points.map((point) => point.predicted_kl?.low ?? point.loss);
    const highs = points.map((point) => point.predicted_kl?.high ?? point.loss);
    this.#x = fitting(Math.min(...sizes), Math.max(...sizes), MARGIN.left, right);
    this.#y = fitting(Math.min(...lows), Math.max(...highs), bottom, MARGIN.top);
    this.#bottom = bottom;
    const dense = (right - MARGIN.left) / points.length < 7;
    const line = points.map((point) => `${this.#x(point.budget_bytes)},${this.#y(height(point))}`);
    const band = [
      ...points.map((point, index) => `${this.#x(point.budget_bytes)},${this.#y(highs[index])}`),
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
        this.#made.filter((nbytes) => nbytes >= sizes[0] && nbytes <= sizes.at(-1)).map((nbytes) =>
          svg("path", { class: "made", d: `M${this.#x(nbytes)} ${bottom}l-6 -10h12z` })),
        this.#choice,
        this.#pointer,
      ),
    );
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
        svg("text", { x: this.#x(value), y: bottom + 20, "text-anchor": "middle" }, size(value)),
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
export function legend(points, made) {
  const kl = points.some((point) => point.predicted_kl);
  const list = h("ul", { class: "legend" },
    h("li", {}, h("i", { class: "key line" }), kl ? "predicted KL divergence, nats per token" : "loss"),
    kl && h("li", {}, h("i", { class: "key band" }), "95 % interval"),
    points.some((point) => point.knee) && h("li", {}, h("i", { class: "key knee" }), "knee: beyond it a byte buys half as much"),
    made.length > 0 && h("li", {}, h("i", { class: "key made" }), "made already"),
  );
  return list;
}
