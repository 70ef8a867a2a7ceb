// The quota and the groups of a person: in words, and as a form.

import { ask } from "./api.js";
import { asked } from "./dialog.js";
import { foreign, h } from "./dom.js";
import { size } from "./words.js";

const GB = 1e9;
const LIMITS = [["active", "Running jobs", 1], ["queued", "Running and waiting jobs", 1], ["nbytes", "Stored and expected, in GB", GB]];

/** The limits that there are. */
export function quotaWords({ active, queued, nbytes }) {
  const limits = [active !== null && `${active} running`, queued !== null && `${queued} unfinished`, nbytes !== null && size(nbytes, 3)];
  return limits.filter(Boolean).join(", ") || "no limit";
}

/** Change the quota and the groups of a person in a dialog; an empty limit is none. */
export function quotaForm({ name, quota, groups }) {
  const inputs = LIMITS.map(([limit, , unit]) => h("input", {
    type: "number", min: "0", step: unit === 1 ? "1" : "any", id: `quota-${limit}`, placeholder: "no limit",
    value: quota[limit] === null ? "" : String(quota[limit] / unit),
  }));
  const fields = LIMITS.map(([limit, title], index) =>
    h("div", { class: "field" }, h("label", { for: `quota-${limit}` }, title), inputs[index]));
  const list = h("input", { id: "quota-groups", value: groups.join(", "), placeholder: "none", autocomplete: "off" });
  fields.push(h("div", { class: "field" }, h("label", { for: "quota-groups" }, "Groups, separated by commas"), list));
  return asked(["Quota and groups of ", foreign(name)], fields, "Save", () => {
    const limits = LIMITS.map(([limit, , unit], index) => [limit, inputs[index].value === "" ? null : Math.round(Number(inputs[index].value) * unit)]);
    return ask(`/v1/people/${encodeURIComponent(name)}`, { method: "PATCH", body: {
      quota: Object.fromEntries(limits), groups: list.value.split(",").map((part) => part.trim()).filter(Boolean) } });
  });
}
