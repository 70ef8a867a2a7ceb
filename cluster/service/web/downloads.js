// Artifacts and their files. A link cannot send a header, so every download gets a ticket for one file and one minute.

import { ask, at } from "./api.js";
import { announce, foreign, h, plain } from "./dom.js";
import { table } from "./tables.js";
import { moment, size, wanted } from "./words.js";

const BETWEEN = 400; // milliseconds: a browser drops a download that another follows at once

/** The artifacts of jobs with their files, each to be downloaded. */
export async function downloads(jobs, signal) {
  const artifacts = await Promise.all(jobs.map(({ artifact }) => ask(`/v1/artifacts/${artifact}`, { signal })));
  return artifacts.map((artifact, index) => artifactCard(artifact, jobs[index]));
}

/** The job that made an artifact: a model's own, or the first that stored an analysis. */
export function makerOf(jobs, { kind, digest }) {
  const done = jobs.filter(({ state }) => state === "done");
  return done.find(({ artifact }) => artifact === digest)
    ?? (kind === "analysis" ? done.findLast(({ result }) => digest === result.analysis) : undefined);
}

/** The name of an artifact: the budget and the quality of its job, its closeness, its person, its date. */
export function nameOf({ kind, nbytes }, job) {
  if (!job) return [kind === "analysis" ? "Analysis" : "Model", " ", h("small", {}, `of ${size(nbytes, 3)}, by a job that is not listed`)];
  const { in_words: words } = job;
  const parts = [kind === "analysis" ? "Analysis" : wanted(job), words.rounding,
    kind === "analysis" ? "" : words.short];
  return [parts.filter(Boolean).join(", "), " ",
    h("small", {}, "by ", foreign(job.owner), `, ${moment(job.finished_at)}`)];
}

/** One artifact, of a job if that is known. */
export function artifactCard(artifact, job) {
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
      h("h3", { title: artifact.digest }, ...nameOf(artifact, job)), all),
    trouble,
    artifact.kind === "model" && job?.in_words["4-bit"] && h("p", { class: "hint" }, `uniform 4-bit, ${size(job.result.uniform.weight_bytes, 3)}: ${job.in_words["4-bit"]}`),
    h("details", {}, h("summary", {}, `${artifact.files.length === 1 ? "One file" : `${artifact.files.length} files`} and the SHA-256`), table(`Files of the ${artifact.kind}`, [
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
