// Models of the hub and GGUF files that the service does not have ready yet: asked for, waited for, then submitted.

import { Refusal, ask } from "./api.js";
import { rest } from "./stream.js";

const PAUSE = 1000;

/** Submit a job; where its model has to be fetched first, ask for that and tell `onProgress` how far it is. */
export async function submitted(body, { onProgress, signal }) {
  const submit = () => ask("/v1/jobs", { method: "POST", body, signal });
  try {
    return await submit();
  } catch (error) {
    if (error.code !== "not_fetched") throw error;
  }
  const begin = () => ask("/v1/fetches", { method: "POST", body: { model: body.model }, signal });
  let fetched = await begin();
  while (["waiting", "running"].includes(fetched.state)) {
    onProgress(fetched);
    await rest(PAUSE, signal);
    fetched = await look(fetched, begin, signal);
  }
  if (fetched.state === "failed") throw new Refusal(0, "not_fetched", fetched.reason);
  return submit();
}

/** A fetch as it stands; of a service that was started anew, a new one; of one that does not answer, as it stood. */
async function look(fetched, begin, signal) {
  try {
    return await ask(`/v1/fetches/${fetched.id}`, { signal });
  } catch (error) {
    if (error.status === 404) return begin();
    if (error.status === 0 || error.status === 429 || error.status >= 500) return fetched;
    throw error;
  }
}
