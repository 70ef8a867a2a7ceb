// Figures as definition lists and tables. Their labels explain themselves where the glossary has the word.

import { h } from "./dom.js";
import { explained } from "./terms.js";

/** Pairs of a name and a value, as a definition list; values that are missing are left out. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", { class: "facts" }, known.map(([name, value]) => h("div", {}, h("dt", {}, explained(name)), h("dd", {}, value))));
}

/** A table: columns are [heading, cell of a row, whether it holds numbers]. A wide one is a list of blocks on a phone. */
export function table(caption, columns, rows) {
  const wide = columns.length > 4; // its roles are written out: blocks of CSS would take them away; its head is hidden
  const role = (name) => wide && name;
  return h("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": caption },
    h("table", { class: wide && "wide", role: role("table") },
      h("caption", { class: "hidden" }, caption),
      h("thead", { role: role("rowgroup") }, h("tr", { role: role("row") }, columns.map(([name, , number]) =>
        h("th", { scope: "col", role: role("columnheader"), class: number && "number" }, name ? (wide ? name : explained(name)) : h("span", { class: "hidden" }, "Actions"))))),
      h("tbody", { role: role("rowgroup") }, rows.map((row) => h("tr", { role: role("row") }, columns.map(([name, cell, number]) =>
        h("td", { role: role("cell"), class: number ? "number" : name === "" && "deeds", "data-label": name }, cell(row))))))));
}
