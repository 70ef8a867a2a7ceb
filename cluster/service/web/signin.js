// The sign-in form of a service that requires tokens: a token, typed once.

import { ask, setToken } from "./api.js";
import { h } from "./dom.js";

/** The form; `onSigned` is called once the service takes the token. */
export function signIn(onSigned) {
  const input = h("input", { id: "token", type: "password", autocomplete: "off", spellcheck: "false", required: true });
  const trouble = h("p", { class: "alert", role: "alert", hidden: true });
  const button = h("button", { class: "primary", type: "submit" }, "Sign in");
  const form = h("form", { class: "card sign-in", onsubmit: (event) => { event.preventDefault(); send(); } },
    h("h1", {}, "Sign in"),
    h("p", { class: "hint" }, "This service wants a token. Whoever runs it makes one with ", h("code", {}, "mint token create NAME"),
      ". It stays in this tab and is forgotten when you close it."),
    h("label", { for: "token" }, "Token"), input, trouble, button);

  async function send() {
    button.disabled = true;
    setToken(input.value.trim());
    try {
      await ask("/v1/jobs?limit=1");
      onSigned();
    } catch (error) {
      setToken("");
      trouble.textContent = error.status === 401 ? "The service does not know this token." : error.message;
      trouble.hidden = false;
      input.focus();
    }
    button.disabled = false;
  }
  return [form];
}
