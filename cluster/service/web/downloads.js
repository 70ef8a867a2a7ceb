// Artifacts and their files. A link cannot send a header, so every download gets a ticket for one file and one minute.

import { ask, at } from "./api.js";
import { announce, foreign, h, plain, table } from "./dom.js";
import { short, size } from "./words.js";

const BETWEEN = 400; // milliseconds: a browser drops a download that another follows at once

/** The artifacts of these digests with their files, each to be downloaded. */
export async function downloads(digests, signal) {
  const found = await Promise.all(digests.map((digest) => ask(`/v1/artifacts/${digest}`, { signal })));
  return found.map(artifactCard);
}

/** One artifact. */
export function artifactCard(artifact) {
  const trouble = h("p", { class: "alert", role: "alert", hidden: true });
  const guarded = (button, work) => async () => {
    button().disabled = true;
    trouble.hidden = true;
    try {
      await work();
    } catch (error) {
      trouble.replaceChildren(foreign(error.message));
      trouble.hidden = false;
    }
    button().disabled = false;
  };
  const all = h("button", { type: "button", onclick: guarded(() => all, () => fetchAll(artifact)) }, `Download ${size(artifact.nbytes, 3)}`);
  return h("article", { class: "card artifact" },
    h("div", { class: "head" },
      h("h3", {}, artifact.kind === "analysis" ? "Analysis" : "Model", " ", h("code", {}, short(artifact.digest))), all),
    trouble,
    h("details", {}, h("summary", {}, `${artifact.files.length === 1 ? "One file" : `${artifact.files.length} files`} and the SHA-256`), table("Files", [
      ["File", (file) => {
        const button = h("button", { type: "button", class: "link", "aria-label": `Download ${plain(file.name)}`,
          onclick: guarded(() => button, () => fetchFile(artifact, file)) }, foreign(file.name));
        return button;
      }],
      ["Size", (file) => size(file.nbytes), true],
      ["SHA-256", (file) => h("code", { title: file.digest }, file.digest)],
    ], artifact.files)));
}

async function fetchAll(artifact) {
  for (const file of artifact.files) {
    await fetchFile(artifact, file);
    await new Promise((resolve) => setTimeout(resolve, BETWEEN));
  }
}

async function fetchFile(artifact, file) {
  const { url } = await ask(`/v1/artifacts/${artifact.digest}/tickets`, { method: "POST", body: { name: file.name } });
  h("a", { href: at(url), download: file.name.split("/").pop() }).click();
  announce(`Downloading ${plain(file.name)}`);
}
