// Looking for an event id, in all topics: stored, dropped, failed or in flight.

import { html, useEffect, useState } from "./vendor/preact-htm.js";
import { ask } from "./source.js";
import { named } from "./tables.js";

export function Search({ text, search }) {
  return html`
    <form class="search" role="search"
      onSubmit=${(submit) => {
        submit.preventDefault();
        search(new FormData(submit.target).get("id"));
      }}>
      <label class="hidden" for="search">Event id</label>
      <input id="search" name="id" type="search" placeholder="Find an event id" maxlength="512" value=${text}
        autocomplete="off" spellcheck=${false} />
      <button type="submit">Find</button>
    </form>
  `;
}

/** The topics that have an event of this id: what is stored, then what the audit trail knows; `more`: not all of both. */
async function find(id) {
  const query = `event_id=${encodeURIComponent(id)}`;
  const [stored, trail] = await Promise.all(
    [`/events?limit=100&${query}`, `/audit?limit=1000&${query}`].map((path) => ask(path).then((answer) => answer.json())),
  );
  const topics = [...new Set([...stored.events, ...trail.audit_logs].map((each) => each.topic))];
  return { topics, more: stored.next_cursor !== null || trail.next_cursor !== null };
}

export function Found({ id, open, clear }) {
  const [answer, setAnswer] = useState(null);
  useEffect(() => {
    let left = false;
    setAnswer(null);
    find(id)
      .then((found) => {
        if (left) return;
        setAnswer(found);
        if (found.topics.length === 1 && !found.more) open(found.topics[0], id);
      })
      .catch((error) => left || setAnswer({ error: error.message }));
    return () => (left = true);
  }, [id]);

  const topics = answer?.topics ?? [];
  return html`
    <div class="notice" role="status" data-found>
      ${answer === null && "…"}
      ${answer?.error && html`<span class="wrong">${answer.error}</span>`}
      ${answer?.topics && (topics.length === 0 ? "No event was received with the id " : "Received with the id ")}
      ${answer?.topics && html`<span class="id">${id}</span>`}${" "}
      <button type="button" class="plain" aria-label="Clear the search" onClick=${clear}>✕</button>
      ${topics.length > 0 &&
      html`<ul>
        ${topics.map(
          (topic) => html`<li>
            <button type="button" class="plain" onClick=${() => open(topic, id)}>in topic ${named(topic)}</button>
          </li>`,
        )}
      </ul>`}
      ${answer?.more && "There are more records of it than were looked at, perhaps in more topics."}
    </div>
  `;
}
