// What is counted over time: the minutes that the server kept, and the seconds since this page began to watch.

export const BOOKS = ["received", "unique", "duplicates", "conflicts", "failed"];
const RATE_SECONDS = 5;
const KEPT_SECONDS = 150;
const MOST_POINTS = 240;
const FINE_MINUTES = 60; // in longer ranges the seconds of this minute are one point

/** Snapshots of the last minutes, oldest first, with one more. A counter that went back begins anew (`reset`). */
export function remember(snapshots, next) {
  const last = snapshots.at(-1);
  const before = last && next.books.received >= last.books.received ? snapshots : [];
  return [...before, next].filter((each) => seconds(each) > seconds(next) - KEPT_SECONDS);
}

export const seconds = (snapshot) => Date.parse(snapshot.at) / 1000;

/** How fast a counter grows, by the last few seconds; null where there is only one snapshot. `get` reads the counter. */
export function rateOf(snapshots, get) {
  const last = snapshots.at(-1);
  const from = snapshots.find((each) => seconds(each) >= seconds(last) - RATE_SECONDS - 0.5);
  const [before, now] = [get(from), get(last)];
  if (from === last || before === undefined || now === undefined) return null;
  return Math.max(0, now - before) / (seconds(last) - seconds(from));
}

/**
 * Rates over time, one list a column, `time` in seconds first: whole minutes of `history` (several together where the
 * range is long), then what was seen since. Minutes in which nobody looked leave a gap.
 */
export function timeline(history, snapshots, minutes) {
  const now = snapshots.length ? seconds(snapshots.at(-1)) : Date.now() / 1000;
  const points = [...past(history, now, minutes)];
  const end = points.length ? points.at(-1).end : now - minutes * 60;
  points.push(...since(snapshots, end, minutes));
  const columns = { time: points.map((point) => point.time) };
  for (const name of [...BOOKS, "in_flight"]) columns[name] = points.map((point) => point[name] ?? null);
  return columns;
}

function* past(history, now, minutes) {
  const together = Math.ceil(minutes / MOST_POINTS) * 60;
  const begins = history.minutes.map((minute) => Date.parse(minute) / 1000).filter((begin) => begin + 60 <= now);
  let sums = null;
  for (let at = 1; at < begins.length; at += 1) {
    if (begins[at] - begins[at - 1] > 60) yield { time: begins[at] - 30 };
    sums ??= { from: begins[at] };
    for (const name of BOOKS) sums[name] = (sums[name] ?? 0) + history[name][at];
    const end = begins[at] + 60;
    if (end % together !== 0 && begins[at + 1] === end) continue;
    const point = { time: (sums.from + end) / 2, end, in_flight: history.in_flight[at] };
    for (const name of BOOKS) point[name] = sums[name] / (end - sums.from);
    yield point;
    sums = null;
  }
}

function* since(snapshots, end, minutes) {
  const seen = snapshots.filter((each) => seconds(each) >= end);
  const last = seen.length - 1;
  for (let at = minutes > FINE_MINUTES ? Math.max(1, last) : 1; at <= last; at += 1) {
    const [before, after] = [seen[minutes > FINE_MINUTES ? 0 : Math.max(0, at - RATE_SECONDS)], seen[at]];
    const point = { time: seconds(after), in_flight: after.books.in_flight };
    const took = seconds(after) - seconds(before);
    for (const name of BOOKS) point[name] = Math.max(0, after.books[name] - before.books[name]) / took;
    yield point;
  }
}
