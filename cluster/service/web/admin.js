// The page of administrators: the queue, machines, people and their quotas, the disk, the audit log.

import { ask, person } from "./api.js";
import { JobDesk } from "./admin_jobs.js";
import { Live, action } from "./parts.js";
import { quotaForm, quotaWords } from "./admin_quota.js";
import { confirmed } from "./dialog.js";
import { alertOf, foreign, h, svg } from "./dom.js";
import { makerOf, nameOf } from "./downloads.js";
import { facts, table } from "./tables.js";
import { ago, duration, moment, size } from "./words.js";

const EVERY = 5_000; // milliseconds between two looks
const ARTIFACTS = 500;
const ENTRIES = 100;

/** Everything that an admin sees and does; others are told which scope they need. */
export async function adminPage({ signal }) {
  const { mayAdmin } = await person(signal);
  if (!mayAdmin) return [h("h1", {}, "Administration"), h("p", { class: "empty" }, "This page needs a token with the scope admin.")];
  const trouble = h("div", {});
  const desk = new JobDesk(signal, () => look());
  const [summary, hosts, people, disk] = [new Live(drawSummary, ""), new Live(drawHosts), new Live(drawPeople), new Live(drawDisk)];
  const audit = new Live(drawAudit);
  const words = h("input", { type: "search", id: "audit-search", "aria-label": "Search the audit log", placeholder: "Person, event, job",
    oninput: () => look() });

  let latest = 0;
  async function look() {
    const turn = ++latest;
    try {
      const [now, queue] = await Promise.all([state(words.value, signal), desk.look()]);
      if (turn !== latest) return;
      for (const part of [summary, hosts, people, disk, audit, desk]) part.show({ ...now, ...queue, look });
      trouble.replaceChildren();
    } catch (error) {
      if (signal.aborted || error.status === 401) throw error;
      trouble.replaceChildren(alertOf(error));
    }
  }
  await look();
  const timer = setInterval(() => { if (!document.hidden) look().catch(() => {}); }, EVERY);
  signal.addEventListener("abort", () => clearInterval(timer));
  return [
    h("h1", {}, "Administration"), trouble, summary.element,
    section("Queue", desk.choice, desk.element),
    section("Machines", null, hosts.element),
    section("People", null, people.element),
    section("Disk", null, disk.element),
    section("Audit log", words, audit.element),
  ];
}

function section(title, choice, ...parts) {
  return h("section", {}, h("div", { class: "head" }, h("h2", {}, title), choice && h("div", { class: "choose" }, choice)), parts);
}

/** What the service says now. */
async function state(search, signal) {
  const query = new URLSearchParams({ search, limit: ENTRIES });
  const [{ hosts }, { people }, { artifacts }, { jobs }, { entries }] = await Promise.all([
    ask("/v1/hosts", { signal }), ask("/v1/people", { signal }), ask(`/v1/artifacts?limit=${ARTIFACTS}`, { signal }),
    ask(`/v1/jobs?state=done&limit=${ARTIFACTS}`, { signal }), ask(`/v1/audit?${query}`, { signal })]);
  return { hosts, people, artifacts, jobs, entries };
}

function drawSummary({ counts, people, hosts }) {
  const here = hosts.find((host) => host.is_here);
  const sum = (states) => states.reduce((total, name) => total + (counts[name] ?? 0), 0);
  const unfinished = Object.keys(counts).filter((name) => !["done", "failed", "cancelled"].includes(name));
  const waiting = sum(["queued", "blocked", "paused"]);
  return facts([
    ["Running", String(sum(unfinished) - waiting)],
    ["Waiting", String(waiting)],
    ["Failed", String(counts.failed ?? 0)],
    ["Done", String(counts.done ?? 0)],
    ["People", String(people.length)],
    ["Stored", size(here.store_bytes, 3)],
    ["Free", size(here.free_bytes, 3)],
  ]);
}

function drawHosts({ hosts, look }) {
  return table("Machines", [
    ["Machine", (host) => [foreign(host.name), host.is_here ? h("small", {}, " this one") : ""]],
    ["State", (host) => h("span", { class: "state", "data-state": host.drained_by ? "paused" : "running" },
      host.drained_by ? ["begins no job, by ", foreign(host.drained_by)] : host.slots === 0 ? "serves only" : "takes jobs")],
    ["Jobs", ({ jobs }) => jobs.length ? jobs.map((id, index) => [index ? ", " : "", h("a", { href: `#/jobs/${id}` }, id.slice(0, 6))]) : "none"],
    ["Slots", ({ slots }) => slots ?? "", true],
    ["Free", ({ free_bytes: free }) => (free === null ? "" : size(free, 3)), true],
    ["Cluster", ({ cluster }) => (cluster ? foreign(cluster) : "")],
    ["Report", ({ seen_at: at }) => (at ? ago(at) : "never")],
    ["", (host) => action(host.drained_by ? "Take jobs again" : "Drain", `drain-${host.name}`, host.name, () =>
      ask(`/v1/hosts/${encodeURIComponent(host.name)}`, { method: "PATCH", body: { drained: !host.drained_by } }), look)],
  ], hosts);
}

function drawPeople({ people, look }) {
  return table("People", [
    ["Person", ({ name }) => foreign(name)],
    ["Token", (row) => tokenWords(row)],
    ["Running", ({ running }) => running, true],
    ["Waiting", ({ waiting }) => waiting, true],
    ["Ended", ({ ended }) => ended, true],
    ["Work", ({ worked_seconds: seconds }) => duration(seconds), true],
    ["Stored", ({ used_bytes: used, quota }) => [size(used, 3), quota.nbytes !== null && h("small", {}, ` of ${size(quota.nbytes, 3)}`)], true],
    ["Groups", ({ groups }) => foreign(groups.join(", ") || "none")],
    ["Quota", ({ quota }) => quotaWords(quota)],
    ["", (row) => action("Change", `quota-${row.name}`, row.name, () => quotaForm(row), look)],
  ], people);
}

function tokenWords({ scopes, used_at: used, expires_at: expires }) {
  if (!scopes.length) return "none";
  const times = [used ? `used ${ago(used)}` : "never used", expires && `until ${moment(expires)}`].filter(Boolean);
  return [scopes.join(", "), " ", h("small", {}, times.join(", "))];
}

function drawDisk({ artifacts, jobs, hosts, look }) {
  const { store_bytes: stored, free_bytes: free } = hosts.find((host) => host.is_here);
  const share = 100 * stored / Math.max(1, stored + free);
  const modelOf = (identity) => jobs.find((job) => job.identity === identity)?.model ?? "a model without jobs";
  return [
    svg("svg", { class: "disk", width: "100%", height: 12, role: "img", "aria-label": `${size(stored, 3)} stored, ${size(free, 3)} free` },
      svg("rect", { class: "rest", width: "100%", height: 12, rx: 3 }),
      svg("rect", { class: "used", width: `${Math.max(0.3, share)}%`, height: 12, rx: 3 })),
    h("p", { class: "hint" }, `${size(stored, 3)} stored, ${size(free, 3)} can still be stored.`),
    artifacts.length ? table("Artifacts", [
      ["Artifact", (artifact) => h("span", { title: artifact.digest }, nameOf(artifact, makerOf(jobs, artifact)))],
      ["Model", ({ identity }) => h("a", { href: `#/models/${identity}` }, foreign(modelOf(identity)))],
      ["Size", ({ nbytes }) => size(nbytes, 3), true],
      ["", (artifact) => action("Remove", `remove-${artifact.digest}`, `${artifact.kind} of ${modelOf(artifact.identity)}, ${size(artifact.nbytes, 3)}`, () =>
        confirmed(`Remove ${size(artifact.nbytes, 3)}?`, "A job that asks for it again makes it anew.", "Remove", () =>
          ask(`/v1/artifacts/${artifact.digest}`, { method: "DELETE" })), look)],
    ], artifacts) : h("p", { class: "empty" }, "Nothing is stored yet."),
  ];
}

function drawAudit({ entries }) {
  if (!entries.length) return h("p", { class: "empty" }, "There is no such entry.");
  return table("Audit log", [
    ["Time", ({ timestamp }) => h("time", { datetime: timestamp }, moment(Date.parse(timestamp) / 1000))],
    ["Person", ({ person: name }) => foreign(name)],
    ["Event", ({ event }) => event],
    ["Details", ({ timestamp: _t, event: _e, person: _p, client: _c, ...details }) => h("small", {}, foreign(
      Object.entries(details).filter(([, value]) => value !== null && value !== "").map(([key, value]) => `${key} ${value}`).join(", ")))],
    ["From", ({ client }) => foreign(client)],
  ], entries);
}
