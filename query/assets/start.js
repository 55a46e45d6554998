// What to do where there is nothing to show: publish something, or say who you are.

import { html } from "./vendor/preact-htm.js";
import { key } from "./source.js";

const EVENT = `{"events": [
  {"event_id": "unique-id", "topic": "topic-name", "source": "source-service",
   "payload": {"message": "Event content", "timestamp": "2025-01-01T00:00:00"},
   "timestamp": "2025-01-01T00:00:00"}]}`;

export function Start() {
  const secret = key.get() ? " -H 'Authorization: Bearer YOUR-KEY'" : "";
  const curl = `curl -s ${location.origin}/publish${secret} -H 'Content-Type: application/json' -d '${EVENT}'`;
  const environment = key.get() ? " CHRONICLE_API_KEY=YOUR-KEY" : "";
  const publisher = `AGGREGATOR_URL=${location.origin}${environment} .venv/bin/chronicle publish`;
  return html`
    <section class="start" aria-label="How to begin">
      <h2>Nothing has been published yet. Send one event:</h2>
      <pre tabindex="0">${curl}</pre>
      <h2>Or 20,000 generated ones, 30 % of them duplicates:</h2>
      <pre tabindex="0">${publisher}</pre>
    </section>
  `;
}

export function Locked({ refusal, unlock }) {
  return html`
    <div class="notice" data-locked>
      <label for="key">This service asks for an API key with the scope <code>read</code>.</label>
      ${refusal && html` <span class="wrong" role="alert">${refusal}</span>`}
      <form
        onSubmit=${(submit) => {
          submit.preventDefault();
          unlock(new FormData(submit.target).get("key").trim());
        }}>
        <input id="key" name="key" type="password" required pattern="[!-~]+" autocomplete="off" />
        <button type="submit">Open</button>
        <span class="quiet">It stays in this tab.</span>
      </form>
    </div>
  `;
}
