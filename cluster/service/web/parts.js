// Parts of pages: a place that keeps its focus when it is drawn anew, and a button that works.

import { announce, foreign, h, plain } from "./dom.js";
import { STATES, base, wanted } from "./words.js";

/** Have screen readers say where a job stands. */
export function announceState(job) {
  announce(`${plain(base(job.model))}, ${wanted(job)}: ${STATES[job.state]}`);
}

/** A place for what `draw(state)` makes; drawn anew only if its text or its things change. */
export class Live {
  #draw;
  #content;

  constructor(draw, shape = "card") {
    this.#draw = draw;
    this.element = h("div", { class: `live ${shape}` });
  }

  show(state) {
    const drawn = h("div", {}, this.#draw(state));
    const content = drawn.textContent + [...drawn.querySelectorAll("[data-key]")].map((node) => node.dataset.key).join();
    if (content === this.#content) return;
    this.#content = content;
    const key = this.element.contains(document.activeElement) ? document.activeElement.dataset.key : "";
    const scroller = this.element.querySelector(".scrolls")?.scrollLeft ?? 0;
    this.element.replaceChildren(...drawn.childNodes);
    if (scroller) this.element.querySelector(".scrolls").scrollLeft = scroller;
    if (key) focusOn(this.element, key);
  }
}

/** Focus the button of a key, which may be drawn anew. */
function focusOn(place, key) {
  place.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/** A button for `work()` on a thing of a name; `after()` follows it, and what goes wrong is shown beside it. */
export function action(title, key, name, work, after = () => {}) {
  const trouble = h("small", { class: "wrong", role: "alert" });
  const button = h("button", { type: "button", class: "quiet", "data-key": key, "aria-label": `${title}: ${plain(name)}`, onclick: async () => {
    button.disabled = true;
    trouble.replaceChildren();
    try {
      if ((await work()) !== false) announce(`${title}: ${plain(name)}, done`);
      await after();
    } catch (error) {
      trouble.replaceChildren(foreign(error.message));
    }
    button.disabled = false;
    if (document.activeElement === document.body) focusOn(document, key); // a disabled button lost the focus
  } }, title);
  return h("span", { class: "action" }, button, trouble);
}
