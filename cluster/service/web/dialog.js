// Dialogs: a question, a form, or something to read. The browser keeps the focus inside, and Escape closes them.

import { foreign, h } from "./dom.js";

/** Ask in a dialog; the answer of `work` if the person agrees, else false. */
export function confirmed(question, consequence, verb, work) {
  return asked(question, [h("p", {}, consequence)], verb, work);
}

/** Show a dialog of a title and parts; with a verb, `work` is called when the form is sent. Resolves when it is closed. */
export function asked(title, parts, verb, work) {
  return new Promise((resolve, reject) => {
    const trouble = h("p", { class: "alert", role: "alert", hidden: true });
    const form = h("form", { onsubmit: async (event) => {
      event.preventDefault();
      try {
        const answer = await work();
        dialog.close();
        resolve(answer);
      } catch (error) {
        if (error.name === "AbortError") reject(error);
        trouble.replaceChildren(foreign(error.message));
        trouble.hidden = false;
      }
    } }, h("h2", { id: "dialog-title" }, title), parts, trouble,
    h("div", { class: "inline" }, verb && h("button", { type: "submit", class: "primary" }, verb),
      h("button", { type: "button", onclick: () => dialog.close() }, verb ? "Leave it" : "Close")));
    const dialog = h("dialog", { class: "card", "aria-labelledby": "dialog-title", onclose: () => { dialog.remove(); resolve(false); } }, form);
    document.body.append(dialog);
    dialog.showModal();
  });
}
