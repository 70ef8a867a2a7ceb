// The page's start: signs the person in, and shows the part that the address names.

import { adminPage } from "./admin.js";
import { person, setToken, token } from "./api.js";
import { alertOf, h, say } from "./dom.js";
import { jobPage, jobsPage } from "./jobs.js";
import { modelPage, modelsPage } from "./models.js";
import { signIn } from "./signin.js";
import { rest } from "./stream.js";
import { themes } from "./theme.js";

const ROUTES = [
  [/^#\/models\/([0-9a-f]+)$/, modelPage],
  [/^#\/models$/, modelsPage],
  [/^#\/admin$/, adminPage],
  [/^#\/jobs\/([\w-]+)$/, jobPage],
  [/^(#\/?)?$/, jobsPage],
];

const AGAIN = 3_000; // milliseconds until a part that the service did not answer for is asked for again
const main = document.getElementById("main");
const leave = document.getElementById("leave");
let shown = new AbortController();

/** Show the part of the page that the address names; the part shown before stops its work. */
async function show({ focus = true } = {}) {
  shown.abort();
  shown = new AbortController();
  const { signal } = shown;
  leave.hidden = !token();
  for (const link of document.querySelectorAll("nav a")) {
    const here = location.hash === link.hash || (link.hash !== "#/" && location.hash.startsWith(link.hash));
    link.toggleAttribute("aria-current", here || (link.hash === "#/" && !location.hash));
  }
  const route = ROUTES.find(([pattern]) => pattern.test(location.hash));
  const page = route ? route[1] : () => Promise.reject(new Error("There is no such page here."));
  try {
    const elements = await page({ signal, key: route?.[0].exec(location.hash)[1] });
    if (signal.aborted) return;
    main.replaceChildren(...elements);
    const { name, mayAdmin } = await person(signal);
    document.getElementById("admin").hidden = !mayAdmin;
    if (token()) say(leave, `Sign out ${name}`);
  } catch (error) {
    if (signal.aborted || error.status === 401) return;
    main.replaceChildren(h("h1", {}, "This did not work"), alertOf(error), h("p", {}, h("a", { href: "#/" }, "To the jobs")));
    if (error.status === 0) again(signal);
  }
  document.title = `${main.querySelector("h1")?.textContent ?? ""} · MINT`;
  if (focus) main.focus({ preventScroll: true });
  scrollTo(0, 0);
}

/** Show the same part once more after a while, unless another one is shown by then. */
function again(signal) {
  main.append(h("p", { class: "hint" }, "The page tries again by itself."));
  rest(AGAIN, signal).then(() => { if (!signal.aborted) show({ focus: false }); });
}

function askForToken() {
  if (main.querySelector("form.sign-in")) return;
  shown.abort();
  setToken("");
  leave.hidden = document.getElementById("admin").hidden = true;
  main.replaceChildren(...signIn(() => show()));
  main.querySelector("input").focus();
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
leave.addEventListener("click", () => askForToken());
addEventListener("mint:unknown", askForToken);
addEventListener("hashchange", () => show());
addEventListener("mint:connection", ({ detail }) => {
  const place = document.getElementById("connection");
  place.dataset.state = detail;
  say(place, detail === "lost" ? "No connection; trying again" : "");
});
themes(document.getElementById("theme"));
show({ focus: false });
