// The service's JSON, and the token that it may ask for: typed once, kept by this tab, sent in a header only.

const KEY = "mint.token";
let known;

/** A refusal of the service, in its own words. */
export class Refusal extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export function token() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setToken(text) {
  known = undefined;
  if (text) sessionStorage.setItem(KEY, text);
  else sessionStorage.removeItem(KEY);
}

/** The person of this tab and their permissions: {name, scopes, maySubmit, mayAdmin}. */
export async function person(signal) {
  known ??= await ask("/v1/me", { signal });
  const mayAdmin = known.scopes.includes("admin");
  return { ...known, mayAdmin, maySubmit: mayAdmin || known.scopes.includes("submit") };
}

/** The headers of every request. */
export function headers(more = {}) {
  return token() ? { ...more, Authorization: `Bearer ${token()}` } : more;
}

/** The address of a path of the service, which a proxy may serve below a prefix: the page knows it, `path` does not. */
export function at(path) {
  return new URL(path.slice(1), document.baseURI);
}

/** Ask the service and return its JSON; throws a `Refusal` for any other answer. A 401 is also an event of the page. */
export async function ask(path, request) {
  const response = await answer(path, request);
  return response.status === 204 ? null : response.json();
}

/** The same for an answer that is plain text. */
export async function askText(path, request) {
  return (await answer(path, request)).text();
}

async function answer(path, { method = "GET", body, signal } = {}) {
  const sent = body === undefined ? {} : { "Content-Type": "application/json" };
  let response;
  try {
    response = await fetch(at(path), {
      method,
      headers: headers(sent),
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal(0, "unreachable", "The service does not answer.");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** The refusal in a response that is not OK. */
export async function refusal(response) {
  const said = await response.json().catch(() => null);
  if (response.status === 401) dispatchEvent(new CustomEvent("mint:unknown"));
  const wait = Number(response.headers.get("Retry-After"));
  const later = wait ? ` Try again in ${wait} s.` : "";
  const message = said?.error?.message ?? `The service answered ${response.status} without a reason.`;
  return new Refusal(response.status, said?.error?.code ?? String(response.status), message + later);
}
