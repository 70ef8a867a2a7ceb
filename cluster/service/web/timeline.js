// The stages of a job on an axis of time, with their durations in words.

import { h, svg } from "./dom.js";
import { FINAL, STATES, duration, isActive } from "./words.js";

const TALL = 22;
const WRITTEN = 46; // a stage narrower than this has no room for its name

/** The spans of states, from the events of a job: [{state, seconds}], repeated attempts each for itself. */
export function spansOf(events, now) {
  const states = events.filter(({ kind }) => kind === "state");
  return states
    .map(({ at, body }, index) => ({ state: body.state, seconds: Math.max(0, (states[index + 1]?.at ?? now) - at) }))
    .filter(({ state }) => !FINAL.includes(state));
}

/** The picture of the spans, with a list of the seconds of each. */
export function timeline(spans) {
  const picture = h("div", { class: "timeline", role: "img", "aria-label": spans.map(inWords).join(", ") });
  new ResizeObserver(([entry]) => draw(picture, spans, Math.floor(entry.contentRect.width))).observe(picture);
  return h("figure", {}, picture, h("figcaption", {}, h("ul", { class: "legend" }, spans.filter(({ seconds }) => seconds >= 0.5)
    .map((span) => h("li", {}, h("i", { class: `key span-${kind(span)}` }), inWords(span))))));
}

function inWords({ state, seconds }) {
  return `${STATES[state] ?? state} ${duration(seconds)}`;
}

/** Work and waiting have their own colours; stages alternate. */
function kind({ state }) {
  if (!isActive(state)) return "wait";
  return ["analyzing", "assembling"].includes(state) ? "work" : "other";
}

function draw(picture, spans, width) {
  if (width < 60) return;
  const whole = spans.reduce((sum, { seconds }) => sum + seconds, 0) || 1;
  let x = 0;
  picture.replaceChildren(svg("svg", { width, height: TALL, viewBox: `0 0 ${width} ${TALL}` }, spans.map((span) => {
    const wide = (span.seconds / whole) * width;
    const here = x;
    x += wide;
    return svg("g", { class: `cell span-${kind(span)}` },
      svg("rect", { x: here, y: 0, width: Math.max(1, wide - 1), height: TALL, rx: 2 }),
      wide >= WRITTEN && svg("text", { x: here + 6, y: TALL / 2, dy: "0.34em" }, fitted(STATES[span.state] ?? span.state, wide)));
  })));
}

function fitted(text, wide) {
  const room = Math.floor((wide - 10) / 6.6);
  return text.length <= room ? text : `${text.slice(0, Math.max(1, room - 1))}…`;
}
