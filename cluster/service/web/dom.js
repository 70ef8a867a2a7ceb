// Elements made of data. All data from the service becomes text: nothing in this folder parses HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element: `on…` properties are listeners, absent ones (null, undefined, false) are left out. */
export function h(name, properties = {}, ...children) {
  return filled(document.createElement(name), properties, children);
}

/** The same of SVG. */
export function svg(name, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, name), properties, children);
}

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Set a node's content if its text is another one, so that nothing is announced or drawn anew for no reason. */
export function say(node, ...parts) {
  const text = parts.map((part) => part.textContent ?? String(part)).join("");
  if (node.textContent !== text) node.replaceChildren(...parts);
}

/** Text of others (names, reasons, notes): its direction of writing changes nothing around it. */
export function foreign(text) {
  return h("bdi", {}, text);
}

/** The same for an attribute or an option, which hold no elements: without the marks that turn text around. */
export function plain(text) {
  return text.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "");
}

/** Have screen readers say something once, when they are done with what they say. */
export function announce(text) {
  say(document.getElementById("announcements"), text);
}

/** An alert that says what went wrong; nothing without an error. */
export function alertOf(error) {
  return error ? h("p", { class: "alert", role: "alert" }, foreign(error.message)) : null;
}

/** Pairs of a name and a value, as a definition list; values that are missing are left out. */
export function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", { class: "facts" }, known.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** A table: columns are [heading, cell of a row, whether it holds numbers]. A wide one is a list of blocks on a phone. */
export function table(caption, columns, rows) {
  const wide = columns.length > 4; // its roles are written out: blocks of CSS would take them away
  const role = (name) => wide && name;
  return h("div", { class: "scrolls", tabindex: "0", role: "region", "aria-label": caption },
    h("table", { class: wide && "wide", role: role("table") },
      h("caption", { class: "hidden" }, caption),
      h("thead", { role: role("rowgroup") }, h("tr", { role: role("row") }, columns.map(([name, , number]) =>
        h("th", { scope: "col", role: role("columnheader"), class: number && "number" }, name || h("span", { class: "hidden" }, "Actions"))))),
      h("tbody", { role: role("rowgroup") }, rows.map((row) => h("tr", { role: role("row") }, columns.map(([name, cell, number]) =>
        h("td", { role: role("cell"), class: number ? "number" : name === "" && "deeds", "data-label": name }, cell(row))))))));
}
