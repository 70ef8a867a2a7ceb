// Light or dark: as the system says, or as was chosen here.

import { say } from "./dom.js";

const KEY = "mint.theme";
const NAMES = { system: "Auto", light: "Light", dark: "Dark" };
const NEXT = { system: "light", light: "dark", dark: "system" };

/** Make `button` go through the themes. */
export function themes(button) {
  show(button, localStorage.getItem(KEY) ?? "system");
  button.addEventListener("click", () => show(button, NEXT[button.dataset.theme]));
}

function show(button, theme) {
  localStorage.setItem(KEY, theme);
  button.dataset.theme = theme;
  document.documentElement.dataset.theme = theme;
  say(button, NAMES[theme]);
  button.setAttribute("aria-label", `Theme: ${NAMES[theme]}`);
}
