// What a request would make, before it is submitted: from the stored analysis of the model, if there is one.

import { ask } from "./api.js";
import { h, foreign } from "./dom.js";
import { figures, minutes, size } from "./words.js";

const PAUSE = 300; // milliseconds without a change, until the service is asked
const MOST = 6; // budgets
const SHARED = ["analyzing", "probing"]; // once for all budgets of a model
const OWN = ["solving", "assembling", "verifying"];

/** A place for the preview; `look(request)` with {identity, budgets, options} fills it soon. */
export class Preview {
  #analyses = new Map();
  #signal;
  #timer;
  #latest = 0;

  constructor(signal) {
    this.#signal = signal;
    this.element = h("div", { class: "preview", "aria-live": "polite" });
  }

  look(request) {
    clearTimeout(this.#timer);
    const turn = ++this.#latest;
    this.#timer = setTimeout(async () => {
      const lines = await this.#lines(request).catch(() => []);
      if (turn === this.#latest && !this.#signal.aborted) this.element.replaceChildren(...lines);
    }, PAUSE);
  }

  async #lines({ identity, model, budgets, options }) {
    if (!identity || !budgets.length) return [];
    const isMeasured = await this.#hasAnalysis(identity, options);
    const plans = isMeasured
      ? await Promise.all(budgets.slice(0, MOST).map((budget) => this.#line(identity, budget, options)))
      : [h("p", { class: "hint" }, "Not measured yet with this rounding: the job measures it first.")];
    return [...plans, await this.#time(model, budgets, options).catch(() => "")];
  }

  /** The expected time of all jobs; what the first of them measures, the others find. */
  async #time(model, budgets, options) {
    const { forecasts } = await ask("/v1/jobs/forecasts", { method: "POST", signal: this.#signal, body: { model, budgets, options } });
    const sum = (names) => names.reduce((total, name) => total + Math.max(...forecasts.map(({ stages }) => stages[name] ?? 0)), 0);
    const own = forecasts.reduce((total, { stages }) => total + OWN.reduce((all, name) => all + (stages[name] ?? 0), 0), 0);
    return h("p", { class: "hint" }, `About ${minutes(sum(SHARED) + own)} of work once it begins, as earlier jobs took.`);
  }

  /** True if the service can plan at once. */
  async #hasAnalysis(identity, { rounding }) {
    if (!this.#analyses.has(identity)) {
      const model = await ask(`/v1/models/${identity}`, { signal: this.#signal });
      this.#analyses.set(identity, model.analyses.filter(({ dtype }) => !dtype).map((analysis) => analysis.rounding));
    }
    return this.#analyses.get(identity).includes(rounding);
  }

  async #line(identity, budget, options) {
    const { rounding, objective, context } = options;
    const body = { model: identity, budget, options: { rounding, objective, ...(context ? { context } : {}) } };
    try {
      const plan = await ask("/v1/plans", { method: "POST", signal: this.#signal, body });
      const kl = plan.predicted && !plan.is_vague ? `, ${plan.predicted}` : "";
      return h("p", { class: "hint" }, h("strong", {}, budget),
        ` leaves ${size(plan.budget_bytes, 3)}: ${size(plan.planned_bytes, 3)}, ${figures(plan.bits_per_weight, 3)} bits${kl}. `,
        `The smallest possible is ${size(plan.smallest_bytes, 3)}.`);
    } catch (error) {
      return h("p", { class: "wrong" }, foreign(error.message));
    }
  }
}
