// Words of the glossary with their meaning: a button opens it, by keyboard, touch or mouse; Escape closes it.

import { h } from "./dom.js";
import { GLOSSARY } from "./glossary.js";

const GAP = 6; // pixels between a word and its meaning
let count = 0;

// labels of the page whose word in the glossary is another one
const WORDS = {
  "Predicted KL": "KL divergence", Closeness: "KL divergence", KL: "KL divergence", Memory: "budget", Checks: "verification",
  Proof: "gap", "What is kept close": "objective", "veto_db": "veto", knee: "curve", Downloads: "artifact",
  "Bits per layer": "format", Format: "format", Unit: "unit", Files: "artifact",
};

/** A label; with a hint if the glossary has `word`, by default the label itself. */
export function explained(label, word = WORDS[label] ?? label) {
  const name = word in GLOSSARY ? word : word[0]?.toLowerCase() + word.slice(1);
  return name in GLOSSARY ? hint(label, name) : label;
}

function hint(label, word) {
  const id = `term-${++count}`;
  const meaning = h("span", { id, class: "meaning", popover: "auto", role: "note" }, h("strong", {}, word), ` ${GLOSSARY[word]}`);
  const button = h("button", { type: "button", class: "term", popovertarget: id }, label);
  meaning.addEventListener("toggle", ({ newState }) => { if (newState === "open") place(meaning, button); });
  return h("span", { class: "explained" }, button, meaning);
}

/** Put a meaning below its word, inside of the window; it scrolls with the page. */
function place(meaning, button) {
  const { left, bottom } = button.getBoundingClientRect();
  const most = document.documentElement.clientWidth - meaning.offsetWidth - GAP;
  meaning.style.left = `${Math.max(GAP, Math.min(left, most)) + scrollX}px`;
  meaning.style.top = `${bottom + GAP + scrollY}px`;
}
