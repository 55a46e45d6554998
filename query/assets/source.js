// What the page knows of the server: requests with the API key, and the stream of snapshots.

const KEY = "chronicle-key";
const SILENT_MS = 6_000; // the server says something every two seconds
const AGAIN_MS = 1_000;

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** An answer that is no success; `kind` and the message are the first of its `detail`. */
export class Refused extends Error {
  constructor(status, detail) {
    super(detail?.msg ?? `status ${status}`);
    this.status = status;
    this.kind = detail?.type;
  }
}

export async function ask(path, signal) {
  const secret = key.get();
  const headers = { Accept: "application/json, text/event-stream" };
  if (secret) headers.Authorization = `Bearer ${secret}`;
  const answer = await fetch(path, { headers, signal, cache: "no-store" });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, said.detail?.[0]);
}

/**
 * Follows the snapshots while the page can be seen. `seen(snapshot)` is called for each, `changed(state)` with "live",
 * "paused", "lost", or "locked" where an API key is needed. Gives a function that ends it.
 */
export function follow(seen, changed) {
  let controller = null;
  let again = null;

  const begin = async () => {
    const mine = (controller = new AbortController());
    try {
      await frames(mine, (frame) => {
        changed("live");
        seen(frame);
      });
      throw new Error("the stream ended");
    } catch (error) {
      if (controller !== mine) return;
      if (error.status === 401 || error.status === 403) {
        changed("locked", key.get() ? error.message : "");
        return;
      }
      changed("lost");
      again = setTimeout(begin, AGAIN_MS);
    }
  };
  const end = () => {
    clearTimeout(again);
    const last = controller;
    controller = null;
    last?.abort();
  };
  const look = () => {
    end();
    if (document.hidden) changed("paused");
    else begin();
  };
  document.addEventListener("visibilitychange", look);
  look();
  return () => {
    document.removeEventListener("visibilitychange", look);
    end();
  };
}

async function frames(controller, seen) {
  let silence = setTimeout(() => controller.abort(), SILENT_MS);
  try {
    const answer = await ask("/dashboard/stream", controller.signal);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(silence);
      silence = setTimeout(() => controller.abort(), SILENT_MS);
      const parts = (text + value).split("\n\n");
      text = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) seen(JSON.parse(part.slice(6)));
    }
  } finally {
    clearTimeout(silence);
  }
}
