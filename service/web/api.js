// All that this page asks of the service. Keys, errors, and whether it answers at all.

const KEY = "llmemb.key";
const VISIBLE = /^[\x21-\x7e]+$/; // what a key is made of; a header takes no other text

/** Of this page: `down` (nothing answers), `unready` (503, with its phase), `up`. */
export const connection = new EventTarget();

/** An answer that is none, as RFC 9457 tells it. `status` 0: nothing answered. */
export class Problem extends Error {
  constructor(status, detail, { type = "", retryAfter = null, errors = [] } = {}) {
    super(detail);
    this.status = status;
    this.type = type;
    this.retryAfter = retryAfter;
    this.errors = errors;
  }

  /** Whether the banner tells of it already. */
  get passing() {
    return this.status === 0 || this.status === 503;
  }
}

export const isAbort = (error) => error.name === "AbortError";

export const itemPath = (id, more = "") => `items/${encodeURIComponent(id)}${more}`;

const storage = {
  get: () => { try { return sessionStorage.getItem(KEY); } catch { return storage.kept; } },
  set: (key) => { storage.kept = key; try { sessionStorage.setItem(KEY, key); } catch { /* kept in memory */ } },
  kept: null,
};

let asking = null;

/** Ask for a key; resolves when there is another than `tried`. One dialog, however many wait. */
function askForKey(tried, why) {
  if (storage.get() !== tried) return Promise.resolve();
  asking ??= new Promise((resolve, reject) => {
    const dialog = document.getElementById("key-dialog");
    const form = document.getElementById("key-form");
    const input = document.getElementById("key-input");
    const wrong = document.getElementById("key-wrong");
    document.getElementById("key-button").hidden = false;
    wrong.textContent = tried ? why : "";
    input.value = "";
    const done = new AbortController();
    const end = (settle, value) => {
      done.abort();
      asking = null;
      if (dialog.open) dialog.close();
      settle(value);
    };
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const key = input.value.trim();
      if (!VISIBLE.test(key)) {
        wrong.textContent = "A key has only letters, digits and signs of ASCII, without spaces. Copy it once more.";
        return;
      }
      storage.set(key);
      end(resolve);
    }, { signal: done.signal });
    const cancel = () => end(reject, new Problem(401, "This needs a key. Press “Key” at the top to enter one."));
    document.getElementById("key-cancel").addEventListener("click", cancel, { signal: done.signal });
    dialog.addEventListener("cancel", cancel, { signal: done.signal });
    dialog.showModal();
    input.focus();
  });
  return asking;
}

/** Let the user enter another key. */
export const changeKey = () => askForKey(storage.get(), "");

/** What the service answers, decoded.
 *  @throws {Problem} for every other status than 2xx, and where nothing answers. */
export async function ask(method, path, { body, query, signal, headers = {}, raw = false } = {}) {
  const url = new URL(`./${path}`, document.baseURI); // `items:lookup` alone would be a scheme
  url.hash = "";
  for (const [name, value] of Object.entries(query ?? {})) url.searchParams.set(name, value);
  for (;;) {
    const key = storage.get();
    let response;
    try {
      response = await fetch(url, {
        method,
        signal,
        cache: "no-store",
        headers: {
          ...(body ? { "Content-Type": "application/json" } : {}),
          ...(key ? { Authorization: `Bearer ${key}` } : {}),
          ...headers,
        },
        body: body ? JSON.stringify(body) : undefined,
      });
    } catch (error) {
      if (isAbort(error)) throw error;
      connection.dispatchEvent(new CustomEvent("down"));
      throw new Problem(0, "The service does not answer.");
    }
    if (response.status === 401) {
      await askForKey(key, "That key is not known here. Try another one.");
      continue;
    }
    if (response.ok) return raw ? response.text() : response.status === 204 ? null : response.json();
    throw await problemOf(response);
  }
}

async function problemOf(response) {
  let told = {};
  try { told = await response.json(); } catch { /* a proxy's page, say */ }
  const after = Number(response.headers.get("Retry-After"));
  const problem = new Problem(response.status, told.detail ?? `The service answered ${response.status}.`, {
    type: told.type ?? "",
    retryAfter: after > 0 ? after : null,
    errors: told.errors ?? [],
  });
  if (response.status === 503) connection.dispatchEvent(new CustomEvent("unready", { detail: problem }));
  return problem;
}

/** Whether requests will be answered: {ready, told}; `told` is the phase, or null if nothing answers. */
export async function readiness() {
  try {
    const response = await fetch(new URL("health/ready", document.baseURI), { cache: "no-store" });
    const told = await response.json();
    return { ready: response.ok, told: response.ok ? "ready" : told.detail, degraded: told.degraded ?? [] };
  } catch {
    return { ready: false, told: null, degraded: [] };
  }
}

let info = null;

/** GET /info; asked once, or again with `again`. */
export function about(again = false) {
  if (again || !info) {
    info = ask("GET", "info");
    info.catch(() => { info = null; });
  }
  return info;
}
