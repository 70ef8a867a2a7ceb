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
