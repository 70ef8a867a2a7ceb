// The form of a request: a model, budgets as sizes or devices, and options. The service checks it; its errors are shown.

import { ask, person } from "./api.js";
import { announce, foreign, h, plain } from "./dom.js";
import { submitted } from "./fetches.js";
import { Preview } from "./preview.js";
import { explained } from "./terms.js";
import { memory, size } from "./words.js";

const BUDGET = /^(\d+(\.\d+)?\s*([kmgt]?b|[kmgt]ib|bpw|x)|min|max)$/i; // the service is stricter, and has the last word
const CONTEXTS = ["4k", "8k", "16k", "32k", "64k", "128k"];
// label and explanation of each value that the API describes
const ROUNDINGS = {
  nearest: ["Nearest", "As MLX rounds by itself. Quickest."],
  search: ["Search", "Looks for better scales in every group: same bytes, less error, measuring takes about ten times as long."],
  compensate: ["Compensate", "The rounding error of each column is compensated in later columns (GPTQ): by far the closest to the original. The model has to run."],
  couple: ["Couple", "Compensates errors of rows too, by gradients. The whole model is in memory while it runs."],
  tune: ["Tune", "Couples, then trains scales and biases: closest to the original, and slowest."],
};
const OBJECTIVES = {
  output: ["Output", "The change of the model's output. The only objective with a predicted KL."],
  energy: ["Energy", "Squared error of all weights alike."],
  mint: ["Published", "The published objective, for comparison."],
};

/** The form; `onSubmitted(jobs)` is called when the service took it. `model` fixes the model. */
export async function submitForm({ onSubmitted, signal }) {
  const asked = ["/v1/models", "/v1/devices", "/openapi.json"].map((path) => ask(path, { signal }));
  const [{ models, allows_hub: allowsHub }, { devices }, { components }, { groups }] = await Promise.all([...asked, person(signal)]);
  const options = components.schemas.Options.properties;
  const model = modelChoice(models, allowsHub);
  const preview = new Preview(signal);
  const look = () => preview.look({
    identity: models.find(({ name }) => name === model.value)?.identity, model: model.value, budgets: budgets.all,
    options: { rounding: rounding.value, objective: objective.value, probe: probe.checked, ...budgets.options },
  });
  const budgets = new Budgets(devices, options.context.default, look);
  const rounding = radios("rounding", "Rounding", options.rounding, ROUNDINGS);
  const objective = radios("objective", "What is kept close", options.objective, OBJECTIVES);
  const group = h("select", { id: "group" }, h("option", { value: "" }, "everybody"), groups.map((name) => h("option", {}, name)));
  const probe = h("input", { type: "checkbox", id: "probe" });
  const trouble = h("p", { class: "alert", role: "alert", hidden: true });
  const taken = h("p", { class: "taken", role: "status", hidden: true });
  const button = h("button", { type: "submit", class: "primary" }, "Submit");
  const form = h("form", { class: "card", novalidate: true, onchange: look, onsubmit: (event) => { event.preventDefault(); send(); } },
    h("div", { class: "field" }, h("label", { for: "model" }, "Model"), model.element),
    budgets.element,
    h("details", {}, h("summary", {}, "Options"),
      rounding.element,
      h("div", { class: "choice" }, probe, h("label", { for: "probe" }, "Probe",
        h("small", {}, "Measures which layers matter by running the model on text that it writes itself. Without a probe, built-in defaults per role and depth are used."))),
      objective.element,
      groups.length > 0 && h("div", { class: "field" }, h("label", { for: "group" }, "Seen by"), group)),
    preview.element, trouble, taken, button);

  async function send() {
    if (!budgets.take()) return;
    trouble.hidden = taken.hidden = true;
    button.disabled = true;
    try {
      const { jobs } = await submitted({
        model: model.value,
        budgets: budgets.chosen,
        options: {
          rounding: rounding.value, objective: objective.value, probe: probe.checked, ...budgets.options,
        },
        ...(group.value ? { group: group.value } : {}),
      }, { onProgress: showFetch, signal });
      budgets.clear();
      taken.textContent = jobs.length === 1 ? "Submitted one job." : `Submitted ${jobs.length} jobs.`;
      taken.hidden = false;
      onSubmitted(jobs);
    } catch (error) {
      if (signal.aborted) return;
      taken.hidden = true;
      trouble.replaceChildren(foreign(error.message));
      trouble.hidden = false;
    }
    button.disabled = false;
  }

  /** In whole percent: what changes is read aloud. */
  function showFetch({ model, done_bytes: done, total_bytes: total }) {
    const far = total ? `${Math.floor(100 * done / total)} % of ${size(total, 3)}` : "waiting";
    const line = `Fetching ${plain(model)} from the hub: ${far}.`;
    if (taken.textContent !== line) taken.textContent = line;
    taken.hidden = false;
  }
  return form;
}

/** A model of the service's folders; where the hub is allowed, its ids can be typed, too. */
function modelChoice(models, allowsHub) {
  const choices = models.filter(({ reason }) => !reason).map(({ name, nbytes }) =>
    h("option", { value: name }, `${plain(name)} (${size(nbytes, 3)})`));
  if (!allowsHub) {
    const select = h("select", { id: "model", required: true }, choices);
    const none = !choices.length && h("small", {}, "There is no model below the service's folders.");
    return { element: h("div", {}, select, none), get value() { return select.value; } };
  }
  const input = h("input", { id: "model", list: "models", required: true, autocomplete: "off", spellcheck: "false", value: models[0]?.name ?? "" });
  return {
    element: h("div", {}, input, h("datalist", { id: "models" }, choices), h("small", {}, "A model of the service, or an id of the Hugging Face hub, such as Qwen/Qwen3-8B. What the service does not have yet it fetches first.")),
    get value() { return input.value.trim(); },
  };
}

/** A choice of the values that the API describes for an option, its default checked. */
function radios(name, title, { enum: values, default: usual }, words) {
  const inputs = values.map((value) => h("input", { type: "radio", name, id: `${name}-${value}`, value, checked: value === usual }));
  const element = h("fieldset", {}, h("legend", {}, explained(title)), values.map((value, index) => {
    const [label, explanation] = words[value] ?? [value, ""];
    return h("div", { class: "choice" }, inputs[index], h("label", { for: `${name}-${value}` }, label, h("small", {}, explanation)));
  }));
  return { element, get value() { return inputs.find((input) => input.checked).value; } };
}

/** Budgets as they are gathered: typed sizes, or devices beside a context. */
class Budgets {
  chosen = [];

  #onChanged;

  constructor(devices, context, onChanged) {
    this.#onChanged = onChanged;
    this.context = h("select", { id: "context" }, CONTEXTS.map((tokens) => h("option", { selected: tokens === context }, tokens)));
    this.chips = h("ul", { class: "chips", "aria-label": "Budgets" });
    this.size = h("input", { id: "size", placeholder: "24GB", autocomplete: "off", spellcheck: "false", "aria-describedby": "size-wrong size-hint",
      onkeydown: (event) => { if (event.key === "Enter" && this.size.value.trim()) { event.preventDefault(); this.take(); } } });
    this.device = h("select", { id: "device" }, h("option", { value: "" }, "Choose a device"), families(devices));
    this.element = h("fieldset", { class: "budgets" },
      h("legend", {}, explained("Memory")),
      this.chips,
      h("div", { class: "field" }, h("label", { for: "size" }, "A size"),
        h("div", { class: "joined" }, this.size, h("button", { type: "button", onclick: () => this.take() }, "Add")),
        this.wrong = h("p", { class: "wrong", id: "size-wrong", role: "alert", hidden: true }),
        h("small", { id: "size-hint" }, "24GB, 16.5GiB, 4.5bpw, 0.3x; as many as you like. None: only the analysis.")),
      h("div", { class: "field" }, h("label", { for: "device" }, "or what a device leaves"),
        h("div", { class: "joined" }, this.device,
          h("button", { type: "button", onclick: () => this.take() }, "Add")),
        h("div", { class: "inline" }, h("label", { for: "context" }, "beside a context of"), this.context, h("span", {}, "tokens"))));
  }

  /** The budgets, with one that is typed or picked and not yet added. */
  get all() {
    const typed = this.size.value.trim();
    const more = [BUDGET.test(typed) ? typed : "", this.device.value].filter(Boolean);
    return [...new Set([...this.chosen, ...more])];
  }

  /** The options of the jobs that belong to the budgets. */
  get options() {
    return this.all.some((text) => this.#isDevice(text)) ? { context: this.context.value } : {};
  }

  /** Take what was typed or picked but not yet added; false, with the reason shown, if that is no budget. */
  take() {
    const typed = this.size.value.split(/[,;]+|\s+(?=\d)/).map((text) => text.trim()).filter(Boolean);
    const wrong = typed.find((text) => !BUDGET.test(text));
    this.#refuse(wrong);
    if (wrong) return false;
    typed.forEach((text) => this.#add(text));
    this.#add(this.device.value);
    this.size.value = this.device.value = "";
    return true;
  }

  #refuse(text) {
    this.wrong.hidden = !text;
    this.size.toggleAttribute("aria-invalid", Boolean(text));
    if (!text) return;
    this.wrong.textContent = /^[\d.]+$/.test(text)
      ? `${text} has no unit. Needed: ${text}GB, ${text}GiB, ${text}MB …`
      : `${text} is no budget. Needed: a number with a unit, such as 24GB, 16.5GiB, 4.5bpw or 0.3x.`;
    this.size.focus();
  }

  clear() {
    this.chosen = [];
    this.#show();
  }

  #isDevice(text) {
    return [...this.device.options].some((option) => option.value === text);
  }

  #add(text) {
    if (!text || this.chosen.includes(text)) return;
    this.chosen.push(text);
    announce(`${text} added`);
    this.#show();
  }

  #show() {
    this.#onChanged();
    this.chips.replaceChildren(...this.chosen.map((text) => h("li", {}, text,
      h("button", { type: "button", "aria-label": `Remove ${text}`, onclick: () => {
        this.chosen = this.chosen.filter((each) => each !== text);
        this.#show();
        this.size.focus();
      } }, "×"))));
  }
}

function families(devices) {
  const byChip = Map.groupBy(devices, ({ chip }) => chip);
  return [...byChip].map(([chip, rows]) => h("optgroup", { label: chip }, rows.map((row) =>
    h("option", { value: row.name }, `${chip}, ${memory(row.memory_bytes)}`))));
}
