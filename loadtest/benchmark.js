// One event a request, 30 % of them duplicates: k6 run -e AGGREGATOR_URL=http://localhost:8080 -e VUS=20 -e DURATION=60s
import http from "k6/http";
import { sleep } from "k6";
import { Counter, Gauge } from "k6/metrics";

const url = __ENV.AGGREGATOR_URL || "http://localhost:8080";
const duplicates = 0.3;
const key = __ENV.CHRONICLE_API_KEY;
const authorization = key ? { Authorization: `Bearer ${key}` } : {};
const headers = { "Content-Type": "application/json", ...authorization };
const published = new Counter("published");
const settled = new Gauge("settled_ms"); // from the end of the load until the last event is projected

export const options = {
  vus: Number(__ENV.VUS || 20),
  duration: __ENV.DURATION || "60s",
  // k6 shares the machine with what it measures, so it reads no answers, keeps its cookie jar, and checks nothing twice:
  // http_req_failed below counts what was not accepted.
  discardResponseBodies: true,
  noCookiesReset: true,
  thresholds: {
    "http_req_duration{scenario:default}": ["p(95)<500"],
    "http_req_failed{scenario:default}": ["rate<0.01"],
  },
};

function readStats() {
  return http.get(`${url}/stats`, { responseType: "text", headers: authorization }).json();
}

export function setup() {
  return { before: readStats(), begun: Date.now() };
}

let sent = 0;
let last = null;

function event() {
  if (last && Math.random() < duplicates) return last;
  const now = new Date().toISOString();
  sent += 1;
  last = JSON.stringify({
    event_id: `k6-${__VU}-${sent}-${now}`,
    topic: `topic-${1 + (sent % 5)}`,
    source: "k6",
    payload: { message: `event ${sent} of user ${__VU}`, timestamp: now },
    timestamp: now,
  });
  return last;
}

export default function () {
  const answer = http.post(`${url}/publish`, `{"events": [${event()}]}`, { headers });
  if (answer.status === 200) published.add(1);
  sleep(0.01);
}

export function teardown({ before, begun }) {
  const ended = Date.now();
  let stats = before;
  do {
    stats = readStats();
  } while (stats.in_flight > 0 && Date.now() - ended < 30000);
  settled.add(Date.now() - ended);
  const received = stats.received - before.received;
  console.log(`received    ${received}`);
  console.log(`unique      ${stats.unique_processed - before.unique_processed}`);
  console.log(`duplicates  ${stats.duplicated_dropped - before.duplicated_dropped}`);
  console.log(`throughput  ${((received * 1000) / (ended - begun)).toFixed(0)} events/s`);
}
