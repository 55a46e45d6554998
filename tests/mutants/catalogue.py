"""The mutants: which rule each breaks, how, and the tests that have to notice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """A replacement in a file. `old` occurs in it exactly once."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A broken rule, as edits, and the tests (pytest's node ids) of which at least one must fail."""

    name: str
    edits: tuple[Edit, ...]
    caught_by: tuple[str, ...]


BROKER, DATABASE, REBUILD = "chronicle/broker.py", "chronicle/database.py", "chronicle/rebuild.py"
RECEIVE, WRITER, PROJECTION = "command/receive.py", "command/writer.py", "projector/projection.py"
WORKER, OUTBOX = "projector/worker.py", "projector/outbox.py"
SEQUENCER = "projector/sequencer.py"

COMMIT = "                await current.record_received(batch_id, events, parts, again=again)\n"
END_OF_RECORD_RECEIVED = "for _, size in requests),\n                }\n            )\n"
END_OF_PROJECT = "    return list(claimed)\n\n\ndef project_apart"
WITHOUT_COUNTERS = '.rsplit("INSERT INTO stats", 1)[0] + "SELECT FROM tally"'

COUNT_RECEIVED = """\
            await self.connection.execute(
                "INSERT INTO stats (topic, lane, received) "
                "SELECT topic, %s, received FROM unnest(%s::text[], %s::int[]) AS t(topic, received) "
                "ON CONFLICT (topic, lane) DO UPDATE SET received = stats.received + excluded.received",
                [self.lane, list(tally), list(tally.values())],
            )
"""

COUNT_OUTCOMES = """\
    connection.execute(
        "INSERT INTO stats (topic, lane, processed, dropped) "
        "SELECT topic, %s, coalesce(sum(event_count) FILTER (WHERE action = 'PROCESSED'), 0), "
        "coalesce(sum(event_count) FILTER (WHERE action = 'DROPPED'), 0) "
        "FROM fact_topics WHERE batch_id = ANY (%s) GROUP BY topic ORDER BY topic "
        "ON CONFLICT (topic, lane) DO UPDATE SET "
        "processed = stats.processed + excluded.processed, dropped = stats.dropped + excluded.dropped",
        [worker_id, list(claimed)],
    )
"""

DECIDE_AGAIN = """\
    columns = COLUMNS["processed_events"]
    connection.execute("DELETE FROM chronicle_rebuild.processed_events")
    connection.execute(
        f"INSERT INTO chronicle_rebuild.processed_events ({columns}) SELECT DISTINCT ON (topic, event_id) {columns} "
        "FROM received_events ORDER BY topic, event_id, batch_id, position"
    )
"""

SWAP = "    for table in READ_MODELS:\n        roles.copy_privileges(connection, table, SCHEMA)\n"

MUTANTS = (
    Mutant(
        "answer before the commit",
        (Edit(RECEIVE, COMMIT, f"                _resolve(requests, None)\n{COMMIT}"),),
        ("tests/integration/test_receive.py::test_an_answer_waits_for_the_commit",),
    ),
    Mutant(
        "a commit that does not wait for the disk",
        (Edit(DATABASE, "coalesce(nullif(current_setting('synchronous_commit'), 'off'), 'on')", "'off'"),),
        ("tests/integration/test_receive.py::test_the_commit_is_synchronous",),
    ),
    Mutant(
        "a commit tried again under another batch id",
        (Edit(RECEIVE, COMMIT, f"                batch_id = new_batch_id()\n{COMMIT}"),),
        ("tests/integration/test_lost_answers.py::test_a_commit_whose_answer_is_lost_is_recorded_once",),
    ),
    Mutant(
        "received events counted outside the transaction",
        (
            Edit(WRITER, "(connection, RECORD_RECEIVED)", f"(connection, RECORD_RECEIVED{WITHOUT_COUNTERS})"),
            Edit(WRITER, END_OF_RECORD_RECEIVED, END_OF_RECORD_RECEIVED + COUNT_RECEIVED),
        ),
        (
            "tests/integration/test_receive.py::test_nothing_is_recorded_before_it_is_counted",
            "tests/integration/test_receive.py::test_a_commit_that_is_tried_again_changes_nothing",
        ),
    ),
    Mutant(
        "outcomes counted outside the transaction",
        (
            Edit(
                PROJECTION,
                "execute(RECORD_OUTCOME, parameters",
                f"execute(RECORD_OUTCOME{WITHOUT_COUNTERS}, parameters",
            ),
            Edit(PROJECTION, END_OF_PROJECT, COUNT_OUTCOMES + END_OF_PROJECT),
        ),
        ("tests/integration/test_projection.py::test_nothing_is_stored_before_it_is_counted",),
    ),
    Mutant(
        "XACK before the commit",
        (
            Edit(WORKER, "        self._acknowledge(list(tickets.named))\n", ""),
            Edit(
                WORKER,
                "            if len(tickets.named) >= self._most_tickets:\n",
                "            self._acknowledge(list(tickets.named))\n"
                "            if len(tickets.named) >= self._most_tickets:\n",
            ),
        ),
        ("tests/integration/test_worker.py::test_a_ticket_is_acknowledged_after_the_commit",),
    ),
    Mutant(
        "a claim that skips what another worker holds",
        (Edit(PROJECTION, "FOR UPDATE\n)\nDELETE", "FOR UPDATE SKIP LOCKED\n)\nDELETE"),),
        ("tests/integration/test_projection.py::test_a_claim_waits_for_who_holds_the_batch",),
    ),
    Mutant(
        "projections that do not say what they hold",
        (Edit(PROJECTION, "RECORD_POSITIONS), announce(connection, claimed))", "RECORD_POSITIONS), [])"),),
        ("tests/integration/test_projection.py::test_of_two_projections_the_one_behind_waits_at_the_end_of_its_work",),
    ),
    Mutant(
        "the last of a projection wins",
        (Edit(PROJECTION, "own.topic, own.batch_id, own.position\n", "own.topic, own.batch_id DESC, own.position\n"),),
        ("tests/integration/test_projection.py::test_of_batches_that_are_projected_together_the_first_wins",),
    ),
    Mutant(
        "a conflict judged by an old snapshot",
        (
            Edit(
                PROJECTION,
                "        claimed = _claim(connection, batch_ids, worker_id)\n",
                '        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")\n'
                "        claimed = _claim(connection, batch_ids, worker_id)\n",
            ),
        ),
        ("tests/integration/test_projection.py::test_a_loser_sees_what_the_winner_stored_after_it_began",),
    ),
    Mutant(
        "a group made at $",
        (Edit(BROKER, 'id="0"', 'id="$"'),),
        ("tests/integration/test_worker.py::test_a_ticket_sent_before_there_was_a_group_is_read",),
    ),
    Mutant(
        "own pending tickets never read again",
        (Edit(WORKER, "        if self._own_pending:\n", "        if self._own_pending is None:\n"),),
        (
            "tests/integration/test_lost_answers.py::test_tickets_whose_delivery_is_lost_are_read_again",
            "tests/integration/test_worker.py::test_who_takes_the_number_of_a_killed_worker_takes_its_tickets_at_once",
        ),
    ),
    Mutant(
        "tickets pending under a name that nobody has again",
        (Edit(WORKER, 'f"worker-{self.worker_id}"', 'f"worker-{self.worker_id}-{time.time()}"'),),
        ("tests/integration/test_worker.py::test_who_takes_the_number_of_a_killed_worker_takes_its_tickets_at_once",),
    ),
    Mutant(
        "batches without a ticket never looked for",
        (Edit(OUTBOX, "    return few or [batch_id for batch_id, _ in chosen[:1]]\n", "    return []\n"),),
        ("tests/integration/test_worker.py::test_a_batch_without_a_ticket_is_found_in_the_outbox",),
    ),
    Mutant(
        "workers of a process that do not take turns",
        (
            Edit(
                WORKER,
                "with self._turn.own(partial(self._beat, connection)) as end_turn:",
                "for end_turn in [lambda: None]:",
            ),
        ),
        ("tests/integration/test_worker.py::test_in_quiet_times_what_was_published_first_wins",),
    ),
    Mutant(
        "a rebuild that decides again",
        (Edit(REBUILD, SWAP, DECIDE_AGAIN + SWAP),),
        ("tests/integration/test_rebuild.py::test_a_rebuild_gives_back_the_same_read_models",),
    ),
    Mutant(
        "a place in the stream given before the commit",
        (
            Edit(
                PROJECTION,
                "    INSERT INTO unsequenced (fact_id, batch_id, attempt)\n",
                "    INSERT INTO stream (fact_id, batch_id, attempt)\n",
            ),
        ),
        ("tests/integration/test_stream.py::test_what_commits_late_comes_late_and_nothing_is_skipped",),
    ),
    Mutant(
        "a turn of the sequencer that begins before the last one has ended",
        (Edit(SEQUENCER, "{TAKE_TURN}; {SEQUENCE}", "{SEQUENCE}; {TAKE_TURN}"),),
        (
            "tests/integration/test_stream.py::"
            "test_who_waits_for_the_turn_sees_what_was_committed_meanwhile_whatever_isolation_is_the_default",
        ),
    ),
)
