// Server-sent events over fetch, which can send a header where EventSource cannot. A stream that breaks off is taken up
// again after the last event that came, with pauses that double.

import { at, headers, refusal } from "./api.js";

const FIRST_PAUSE = 500;
const LONGEST_PAUSE = 15_000;
const OVER = Symbol("the job is over and all its events were sent");
const SILENCE = 45_000; // the service says something every 15 s

/** Turns text, cut anywhere, into events {id, kind, data}; the format's rules as far as a service needs them. */
export class Parser {
  #rest = "";
  #event = { id: "", kind: "message", data: [] };

  push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    const found = [];
    for (const line of lines) {
      if (line !== "") {
        this.#field(line);
        continue;
      }
      if (this.#event.data.length) found.push({ ...this.#event, data: this.#event.data.join("\n") });
      this.#event = { id: "", kind: "message", data: [] };
    }
    return found;
  }

  #field(line) {
    const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (name === "id") this.#event.id = value;
    else if (name === "event") this.#event.kind = value;
    else if (name === "data") this.#event.data.push(value);
  }
}

/**
 * Give every event of a job, {seq, kind, at, body}, to `onEvent` until it returns true, there are no more, or `signal`
 * ends it. Throws what the service refuses.
 */
export async function follow(path, { after = 0, onEvent, signal }) {
  let last = after;
  let pause = FIRST_PAUSE;
  while (!signal.aborted) {
    try {
      for await (const event of events(path, last, signal)) {
        if (event === OVER) return;
        pause = FIRST_PAUSE;
        last = Number(event.id) || last;
        const { at, ...body } = JSON.parse(event.data);
        if (onEvent({ seq: last, kind: event.kind, at, body })) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status && error.status < 500 && error.status !== 429) throw error;
    }
    await rest(pause * (0.75 + Math.random() / 2), signal);
    pause = Math.min(2 * pause, LONGEST_PAUSE);
  }
}

async function* events(path, last, signal) {
  const silent = new AbortController();
  const response = await fetch(at(path), {
    headers: headers({ Accept: "text/event-stream", ...(last ? { "Last-Event-ID": String(last) } : {}) }),
    signal: AbortSignal.any([signal, silent.signal]),
    cache: "no-store",
  });
  if (!response.ok) throw await refusal(response);
  if (response.status === 204) yield OVER;
  if (!response.body) return;
  const parser = new Parser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let timer;
  try {
    while (true) {
      timer = setTimeout(() => silent.abort(), SILENCE);
      const { done, value } = await reader.read();
      clearTimeout(timer);
      if (done) return;
      yield* parser.push(value);
    }
  } finally {
    clearTimeout(timer);
    silent.abort();
  }
}

/** Wait; a signal ends it early. */
export function rest(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}
