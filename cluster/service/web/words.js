// Figures and states as text for people. The rules are those of `mint`: powers of 1000, four figures.

const RAISED = Object.fromEntries([..."-0123456789"].map((digit, index) => [digit, [..."⁻⁰¹²³⁴⁵⁶⁷⁸⁹"][index]]));
const SIZES = [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]];

/** A number with so many figures, without an exponent and without zeros at its end. */
export function figures(value, count = 4) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const places = Math.min(20, Math.max(0, count - 1 - Math.floor(Math.log10(Math.abs(value)))));
  return Number(value.toPrecision(count)).toLocaleString("en", { maximumFractionDigits: places, useGrouping: true });
}

/** A figure for an axis: a power of ten where it is small or large. */
export function tick(value) {
  const power = Math.floor(Math.log10(value) + 1e-9);
  if (value === 0 || (power > -4 && power < 5)) return figures(value);
  const factor = Math.round(value / 10 ** power);
  return `${factor === 1 ? "" : `${factor}×`}10${[...String(power)].map((digit) => RAISED[digit]).join("")}`;
}

/** Bytes, such as 24.5 GB. */
export function size(nbytes, count = 4) {
  if (!Number.isFinite(nbytes)) return "–";
  const [unit, factor] = SIZES.find(([, factor]) => Math.abs(nbytes) >= factor) ?? ["B", 1];
  return `${figures(nbytes / factor, count)} ${unit}`;
}

/** Memory, which is sold in powers of 1024 and called GB. */
export function memory(nbytes) {
  return `${figures(nbytes / 2 ** 30, 3)} GB`;
}

/** Seconds, such as 1 h 04 min. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  return `${Math.floor(whole / 3600)} h ${String(Math.floor((whole % 3600) / 60)).padStart(2, "0")} min`;
}

/** Seconds in about so many minutes, for what is only expected. */
export function minutes(seconds) {
  if (seconds < 60) return "a minute";
  return seconds < 5400 ? `${Math.round(seconds / 60)} minutes` : `${figures(seconds / 3600, 2)} hours`;
}

/** A moment: the time of day today, the date before. */
export function moment(seconds) {
  if (!seconds) return "";
  const then = new Date(seconds * 1000);
  const today = then.toDateString() === new Date().toDateString();
  return today
    ? then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })
    : then.toLocaleDateString([], { year: "numeric", month: "short", day: "numeric" });
}

/** The time since a moment, such as 3 min ago. */
export function ago(seconds) {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  const [unit, length] = [["d", 86400], ["h", 3600], ["min", 60]].find(([, length]) => past >= length) ?? ["", 1];
  return unit ? `${Math.floor(past / length)} ${unit} ago` : "now";
}

/** A KL divergence and its interval. */
export function interval(kl) {
  return `${figures(kl.value, 3)} (${figures(kl.low, 2)} to ${figures(kl.high, 2)})`;
}

/** The first figures of a digest. */
export function short(digest) {
  return digest.slice(0, 12);
}

/** A model's name without the folders that it lies in. */
export function base(name) {
  return name.split("/").pop();
}

// stages whose progress is in bytes of weights, and not in pieces
export const IN_BYTES = ["analyze", "assemble"];

// the way of a job, in order; the service's states in words
export const STAGES = ["inventory", "analyzing", "probing", "solving", "assembling", "verifying"];
export const FINAL = ["done", "failed", "cancelled"];
export const STATES = {
  queued: "waiting",
  inventory: "reading headers",
  analyzing: "measuring",
  probing: "probing",
  solving: "choosing formats",
  assembling: "writing",
  verifying: "checking",
  done: "done",
  failed: "failed",
  cancelled: "cancelled",
  blocked: "waiting for disk",
  paused: "paused",
};

/** True if a runner works on a job of this state. */
export function isActive(state) {
  return STAGES.includes(state);
}

/** The expected seconds until a job is done: the stage at work by its measured rate, later ones as earlier jobs took. */
export function secondsLeft(job, progress) {
  const expected = job.expected_stages ?? {};
  const here = STAGES.indexOf(job.state);
  if (here < 0 || !Object.keys(expected).length) return null;
  const later = STAGES.slice(here + 1).reduce((sum, stage) => sum + (expected[stage] ?? 0), 0);
  const left = progress?.total > 0 ? progress.total - progress.done : 0;
  const rate = (progress?.hosts ?? []).reduce((sum, host) => sum + host.bytes_per_second, 0);
  const share = progress?.total > 0 ? left / progress.total : 1;
  return later + (rate > 0 && IN_BYTES.includes(progress.stage) ? left / rate : share * (expected[job.state] ?? 0));
}

/** The request of a job, in words. */
export function wanted(job) {
  const exact = /^(\d+)B$/.exec(job.budget); // of a point of the curve
  return exact ? size(Number(exact[1])) : job.budget || "analysis only";
}
