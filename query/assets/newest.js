// The newest events, of all topics or of one.

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { exactTime, time } from "./format.js";
import { ask } from "./source.js";
import { named } from "./tables.js";

const MOST = 20;

export function Newest({ snapshot, topic, choose, open }) {
  const [paused, setPaused] = useState(false);
  const [shown, setShown] = useState([]);
  const ofTopic = useOfTopic(topic, snapshot, paused);
  const fresh = topic === null ? snapshot.newest.audit_logs : ofTopic;
  useEffect(() => {
    if (!paused) setShown(fresh);
  }, [fresh, paused]);

  return html`
    <section aria-label="Newest events">
      <div class="bar">
        <h2>Newest events</h2>
        ${topic !== null &&
        html`<span class="chip">
          ${named(topic)}
          <button type="button" class="plain" aria-label="Show all topics" onClick=${() => choose(null)}>✕</button>
        </span>`}
        <div class="end">
          <button type="button" aria-pressed=${String(paused)} onClick=${() => setPaused(!paused)}>
            ${paused ? "Paused" : "Pause"}
          </button>
        </div>
      </div>
      <ol class="newest">
        ${shown.map(
          (each) => html`
            <li key=${each.id}>
              <button type="button" class="plain" onClick=${() => open(each.topic, each.event_id)}>
                <span class="id">${each.event_id}</span>
                <time class="quiet" datetime=${each.created_at} title=${exactTime(each.created_at)}>
                  ${time(each.created_at)}
                </time>
                <span class="about">${named(each.topic)} · from ${each.source} · worker ${each.worker_id}</span>
              </button>
            </li>
          `,
        )}
      </ol>
      ${shown.length === 0 && html`<p class="quiet">None yet.</p>`}
    </section>
  `;
}

/** The newest of a topic, asked for again when its counters have changed. */
function useOfTopic(topic, snapshot, paused) {
  const [events, setEvents] = useState([]);
  const counters = snapshot.topics.find((each) => each.topic === topic);
  const known = counters ? counters.unique : snapshot.at;
  const asked = useRef(null);
  useEffect(() => {
    if (topic === null || paused) return;
    if (asked.current !== topic) setEvents([]);
    asked.current = topic;
    ask(`/audit?action=PROCESSED&limit=${MOST}&topic=${encodeURIComponent(topic)}`)
      .then((answer) => answer.json())
      .then((page) => asked.current === topic && setEvents(page.audit_logs))
      .catch(() => {}); // the next snapshot asks again, or says what is wrong
  }, [topic, known, paused]);
  return events;
}
