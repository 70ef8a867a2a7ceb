// One point of the curve: the plan, its size, what to expect of it, what more memory would buy, and the button.

import { ask } from "./api.js";
import { announce, h } from "./dom.js";
import { strip } from "./strip.js";
import { facts } from "./tables.js";
import { figures, memory, size } from "./words.js";

/** A panel for the plan and a place for its picture; `show(point)` fills both. `devices` have room for so many bytes. */
export class PlanPanel {
  #request = new AbortController();
  #signal;
  #identity;
  #name;
  #options;
  #placed;
  #maySubmit;

  constructor({ identity, name, options, devices, maySubmit, signal }) {
    this.#maySubmit = maySubmit;
    this.#placed = devices;
    this.#identity = identity;
    this.#name = name;
    this.#options = options;
    this.#signal = signal;
    this.element = h("section", { class: "card plan", "aria-labelledby": "plan", "aria-live": "off" });
    this.picture = h("div", {});
  }

  async show(point) {
    this.#request.abort();
    this.#request = new AbortController();
    const signal = AbortSignal.any([this.#signal, this.#request.signal]);
    this.element.setAttribute("aria-busy", "true");
    try {
      const plan = await ask("/v1/plans", {
        method: "POST", signal, body: { model: this.#identity, budget: `${point.budget_bytes}B`, options: this.#options },
      });
      this.element.replaceChildren(...this.#said(plan));
      this.picture.replaceChildren(strip(plan.units));
      announce(`Plan: ${size(plan.planned_bytes)}`);
    } catch (error) {
      if (signal.aborted) return;
      this.element.replaceChildren(h("p", { class: "alert", role: "alert" }, error.message));
    }
    this.element.removeAttribute("aria-busy");
  }

  #said(plan) {
    const fits = this.#devices(plan.planned_bytes);
    const kl = plan.predicted_kl;
    const note = h("p", { class: "taken", role: "status" });
    const button = h("button", { type: "button", class: "primary", onclick: () => this.#make(plan, button, note) }, "Make it");
    return [
      h("h3", { id: "plan" }, "The plan"),
      h("p", { class: "big" }, size(plan.planned_bytes)),
      facts([
        ["Bits per weight", figures(plan.bits_per_weight, 4)],
        ["Closeness", plan.in_words.closeness],
        ["Uniform 4-bit", plan.in_words["4-bit"]],
        ["Loss", kl ? "" : figures(plan.loss, 3)],
        [plan.next ? `The next ${size(plan.next.step_bytes, 3)} buy` : "More memory buys", nextWords(plan)],
        ["Holds it beside 8k tokens", fits],
        ["Proof", plan.gap > 0 ? `within ${figures(100 * plan.gap, 2)} % of the best` : "no plan of this size is better"],
      ]),
      mix(plan.units),
      plan.in_words.WARNING && h("p", { class: "wrong" }, plan.in_words.WARNING),
      plan.predicted_from && !plan.is_vague && h("p", { class: "hint" }, `Predicted from ${plan.predicted_from}.`),
      this.#maySubmit && button, note,
    ].filter(Boolean);
  }

  /** The device of least memory that holds so many bytes, and how many others do. */
  #devices(nbytes) {
    const able = this.#placed.filter(({ budget_bytes: room }) => room !== null && room >= nbytes);
    if (!able.length) return this.#placed.length ? "none of the table" : "";
    const least = able.reduce((a, b) => (b.memory_bytes < a.memory_bytes ? b : a));
    const words = ({ chip, memory_bytes: nbytes }) => `${chip}, ${memory(nbytes)}`;
    if (able.length === 1) return words(least);
    const byMemory = able.toSorted((a, b) => a.memory_bytes - b.memory_bytes || a.chip.localeCompare(b.chip));
    return [words(least), h("details", { class: "devices" }, h("summary", {}, `and ${able.length - 1} others`),
      h("ul", { tabindex: "0", "aria-label": "Devices that hold it" }, byMemory.map((device) => h("li", {}, `${words(device)}: ${size(device.budget_bytes, 3)} for weights`))))];
  }

  async #make(plan, button, note) {
    button.disabled = true;
    try {
      const { jobs: [job] } = await ask("/v1/jobs", {
        method: "POST", body: { model: this.#name, budgets: [`${plan.budget_bytes}B`], options: this.#options },
      });
      note.replaceChildren(job.state === "done" ? "Made before: " : "Submitted: ",
        h("a", { href: `#/jobs/${job.id}` }, job.state === "done" ? "its files" : "follow it"));
    } catch (error) {
      note.replaceChildren(error.message);
    }
    button.disabled = false;
  }
}

/** The gain of more memory. */
function nextWords({ next, loss }) {
  if (!next) return "nothing: no plan has less loss";
  return `${figures(100 * (1 - next.loss / loss), 2)} % less loss`;
}

/** The division of the bytes among formats, largest first. */
function mix(units) {
  const total = units.reduce((sum, unit) => sum + unit.nbytes, 0) || 1;
  const byFormat = Map.groupBy(units, ({ format }) => format);
  const shares = [...byFormat].map(([format, rows]) => [format, rows.reduce((sum, unit) => sum + unit.nbytes, 0) / total]);
  shares.sort(([, a], [, b]) => b - a);
  return h("ul", { class: "mix", "aria-label": "Share of the bytes by format" }, shares.slice(0, 6).map(([format, share]) =>
    h("li", {}, h("span", {}, format), h("progress", { max: "1", value: String(share), "aria-label": format }),
      h("span", { class: "number" }, `${Math.round(100 * share)} %`))));
}
