"""The outbox's promises, on virtual time and a real database."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest

Bench = Any  # conftest.Bench: test folders are no packages
Make = Callable[..., Bench]
NO_EVENTS: list[dict[str, Any]] = [{"captured_at": "yesterday"}, {"captured_at": None}, {"score": float("nan")}]


def seqs(published: list) -> list[int]:
    return [publish.seq for publish in published]


def test_events_reach_the_broker_in_order(bench: Bench) -> None:
    """The first promise, without trouble."""
    bench.connect()
    bench.record(count=500)
    bench.commit()
    assert seqs(bench.answer_all()) == list(range(1, 501))
    assert bench.outbox.stats().queued == 0
    assert bench.outbox.stats().delivered == 500


def test_nothing_is_published_before_it_is_durable(bench: Bench) -> None:
    """A consumer must never see an event that a power cut could take away again, with its number given to another."""
    bench.connect()
    bench.record()
    assert bench.published == []
    bench.commit()
    assert seqs(bench.published) == [1]


def test_hundred_events_do_not_wait_for_the_group_commit(bench: Bench) -> None:
    bench.record(count=100)
    assert bench.outbox.stats().recorded == 100


def test_only_the_oldest_event_goes_out_until_the_broker_answered(bench: Bench) -> None:
    """A topic that is denied must cost one message a try."""
    bench.record(count=10)
    bench.commit()
    bench.connect()
    assert seqs(bench.published) == [1]
    bench.answer(bench.published[0])
    assert seqs(bench.published) == list(range(1, 11))


def test_window_and_receive_maximum_bound_what_is_in_flight(make_bench: Make) -> None:
    """MQTT 5 section 4.9: a client that exceeds the receive maximum is disconnected."""
    bench = make_bench(window=50)
    bench.record(count=200)
    bench.commit()
    bench.connect(receive_maximum=7)
    bench.answer(bench.published.pop())
    assert len(bench.published) == 7
    bench.connect()
    bench.answer(bench.published.pop())
    bench.commit()
    assert len(bench.published) - 7 == 50


def test_a_lost_connection_repeats_only_what_was_in_flight(bench: Bench) -> None:
    bench.record(count=5)
    bench.commit()
    bench.connect()
    bench.answer(bench.published.pop(0))
    bench.answer(bench.published.pop(0))
    bench.published.clear()
    bench.disconnect()
    bench.connect()
    assert seqs(bench.answer_all()) == [3, 4, 5]


def test_answers_of_a_former_connection_are_ignored(bench: Bench) -> None:
    bench.record(count=2)
    bench.commit()
    bench.connect()
    stale = bench.published.pop()
    bench.disconnect()
    bench.connect()
    bench.published.clear()
    bench.answer(stale)
    bench.commit()
    assert bench.outbox.stats().queued == 2


def test_replayed_says_whether_an_event_is_older_than_the_connection(bench: Bench) -> None:
    """A consumer that shows "now" must be able to leave old news out."""
    bench.record()
    bench.commit()
    bench.connect()
    bench.record()
    bench.commit()
    flags = {publish.seq: json.loads(publish.payload)["data"]["replayed"] for publish in bench.answer_all()}
    assert flags == {1: True, 2: False}


def test_a_restart_keeps_events_and_order(bench: Bench) -> None:
    bench.record(count=5)
    bench.commit()
    bench.kill()
    bench.open()
    bench.record(count=2)
    bench.commit()
    bench.connect()
    delivered = seqs(bench.answer_all())
    assert len(delivered) == 7
    assert delivered == sorted(set(delivered))


def test_a_denied_pipeline_waits_and_the_others_go_on(bench: Bench) -> None:
    """A denied publish is not a delivered one."""
    bench.record("door", 3)
    bench.record("yard", 3)
    bench.commit()
    bench.connect()
    for publish in list(bench.published):
        bench.answer(publish, 0x87 if publish.pipeline == "door" else 0)
    bench.published = bench.published[2:]
    assert {publish.pipeline for publish in bench.published} == {"yard"}
    bench.answer_all()
    condition = bench.conditions["publish-denied/door"]
    assert "not authorised" in condition.text
    assert bench.outbox.stats().queued == 3
    bench.pass_time(1.0)
    assert [publish.pipeline for publish in bench.published] == ["door"]


def test_a_denied_pipeline_is_tried_again_with_growing_delay_and_recovers_in_order(bench: Bench) -> None:
    bench.record(count=4)
    bench.commit()
    bench.connect()
    tries = 0
    for _ in range(600):
        if bench.published:
            tries += 1
            bench.answer(bench.published.pop(), 0x97)
        bench.pass_time(1)
    assert 10 <= tries <= 30  # 1, 2, 4 … 60 s, half of each fixed, half drawn
    bench.pass_time(60)
    assert seqs(bench.answer_all()) == [1, 2, 3, 4]
    assert "publish-denied/door" not in bench.conditions


def test_no_subscribers_is_delivered_in_broker_mode(bench: Bench) -> None:
    """0x10 is the broker's word that it took the message (MQTT 5 table 3-4)."""
    bench.record()
    bench.commit()
    bench.connect()
    bench.answer_all(0x10)
    assert bench.outbox.stats().queued == 0


def test_mqtt_3_says_that_denials_cannot_be_seen(bench: Bench) -> None:
    bench.connect(sees_denials=False)
    assert bench.conditions["denials-invisible"].severity == "info"
    bench.connect(sees_denials=True)
    assert "denials-invisible" not in bench.conditions


def test_consumer_mode_keeps_events_until_the_consumer_has_them(make_bench: Make) -> None:
    bench = make_bench(delivery="consumer")
    bench.record(count=3)
    bench.commit()
    bench.connect()
    bench.answer(bench.published[0])
    bench.commit()
    assert bench.outbox.stats().queued == 3
    assert seqs(bench.published) == [1]
    bench.do(bench.outbox.consumer_acknowledged(b"1", bench.now))
    assert seqs(bench.published) == [1, 2, 3]
    bench.do(bench.outbox.consumer_acknowledged(b'{"seq": [2, 3]}', bench.now))
    bench.commit()
    assert bench.outbox.stats().queued == 0


def test_consumer_that_is_not_there_gets_the_oldest_again_and_a_condition(make_bench: Make) -> None:
    bench = make_bench(delivery="consumer", consumer_timeout_s=10)
    bench.record(count=3)
    bench.commit()
    bench.connect()
    bench.answer(bench.published[0], 0x10)
    assert "consumer-silent/door" in bench.conditions
    bench.pass_time(21)
    assert seqs(bench.published) == [1, 1]
    assert json.loads(bench.published[1].payload)["data"]["replayed"] is True
    bench.do(bench.outbox.consumer_acknowledged(b"[1]", bench.now))
    assert "consumer-silent/door" not in bench.conditions
    assert seqs(bench.published) == [1, 1, 2, 3]


def test_consumer_that_stops_in_the_middle_gets_everything_again_in_order(make_bench: Make) -> None:
    bench = make_bench(delivery="consumer", consumer_timeout_s=10)
    bench.record(count=5)
    bench.commit()
    bench.connect()
    bench.do(bench.outbox.consumer_acknowledged(b"1", bench.now))
    bench.do(bench.outbox.consumer_acknowledged(b"3", bench.now))
    bench.published.clear()
    bench.pass_time(11)
    assert seqs(bench.published) == [2]
    bench.do(bench.outbox.consumer_acknowledged(b"2", bench.now))
    assert seqs(bench.published) == [2, 4, 5]


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"null", b'"1"', b"[true]", b"[1.5]", b'{"seq": {}}', b"\xff", b"[" * 9999]
)
def test_nonsense_on_the_ack_topic_deletes_nothing(make_bench: Make, payload: bytes) -> None:
    bench = make_bench(delivery="consumer")
    bench.record()
    bench.commit()
    bench.connect()
    bench.do(bench.outbox.consumer_acknowledged(payload, bench.now))
    bench.commit()
    assert bench.outbox.stats().queued == 1


def test_acknowledgement_of_a_number_not_yet_used_deletes_nothing_later(make_bench: Make) -> None:
    """A broker under attack may replay or invent acknowledgements; the future is not theirs to take."""
    bench = make_bench(delivery="consumer")
    bench.connect()
    bench.do(bench.outbox.consumer_acknowledged(b"[1, 2, 99999999999999999999999]", bench.now))
    bench.record(count=2)
    bench.commit()
    assert bench.outbox.stats().queued == 2


@pytest.mark.parametrize("policy", ["drop_oldest", "thin_out", "drop_newest"])
def test_full_quota_drops_by_policy_counts_every_loss_and_reports_it(make_bench: Make, policy: str) -> None:
    """Promise 5: what was dropped is counted and reported; the rest arrives in order."""
    bench = make_bench(max_mb=0.25, when_full=policy)
    bench.record(count=1000)
    bench.commit()
    stats = bench.outbox.stats()
    assert stats.queued_bytes <= 0.25 * 2**20
    assert stats.queued + sum(stats.lost.values()) == 1000
    assert set(stats.lost) == {policy}
    assert "event-loss" in bench.conditions
    bench.connect()
    bench.commit()
    delivered = bench.answer_all()
    documents = [json.loads(publish.payload) for publish in delivered]
    events = [document["data"]["seq"] for document in documents if document["type"] == "dev.holdfast.event.track"]
    reports = [document["data"] for document in documents if document["type"] == "dev.holdfast.loss"]
    assert events == sorted(set(events))
    assert len(events) + sum(report["count"] for report in reports) == 1000
    assert "event-loss" not in bench.conditions
    expected = {"drop_oldest": (False, True), "drop_newest": (True, False), "thin_out": (True, True)}[policy]
    assert (1 in events, 1000 in events) == expected


def test_loss_report_is_sent_again_until_it_was_delivered(make_bench: Make) -> None:
    bench = make_bench(max_mb=0.01)
    bench.record(count=100)
    bench.connect()
    bench.commit()
    bench.published.clear()
    bench.kill()
    bench.open()
    assert "event-loss" in bench.conditions
    bench.connect()
    reports = [json.loads(publish.payload) for publish in bench.answer_all()]
    totals = [report["data"]["total"] for report in reports if report["type"] == "dev.holdfast.loss"]
    assert totals == [sum(bench.outbox.stats().lost.values())]
    bench.kill()
    bench.open()
    assert "event-loss" not in bench.conditions


def test_what_is_in_flight_is_not_dropped(make_bench: Make) -> None:
    """Dropped, counted as lost, and delivered all the same: the numbers would not add up."""
    bench = make_bench(max_mb=0.02, window=5)
    bench.record(count=20)
    bench.commit()
    bench.connect()
    bench.answer(bench.published.pop(0))
    bench.commit()
    bench.record(count=80)
    bench.commit()
    kinds = [json.loads(publish.payload)["type"] for publish in bench.answer_all()]
    lost = bench.outbox.stats().lost["drop_oldest"]
    assert lost > 0
    assert 1 + kinds.count("dev.holdfast.event.track") + lost == 100


def test_event_larger_than_the_quota_is_refused_and_counted(make_bench: Make) -> None:
    bench = make_bench(max_mb=0.01)
    bench.record(count=3)
    bench.record(extra={"blob": "x" * 20_000})
    bench.commit()
    assert bench.outbox.stats().lost == {"too_large": 1}
    assert bench.outbox.stats().queued == 3


def test_message_that_is_no_event_is_counted_and_harms_nobody(bench: Bench) -> None:
    for broken in ({}, *(bench.message(**wrong) for wrong in NO_EVENTS)):
        bench.do(bench.outbox.record(broken, None, bench.now))
    bench.record()
    bench.commit()
    assert bench.outbox.stats().lost == {"invalid": 4}
    assert bench.outbox.stats().queued == 1


def test_file_shrinks_after_draining(bench: Bench) -> None:
    """256 MiB that were needed once must not be held for ever on a small disk."""
    bench.record(count=20_000, extra={"note": "x" * 200})
    bench.commit()
    grown = bench.paths.database.stat().st_size
    bench.connect()
    bench.answer_all()
    bench.pass_time(60)
    assert bench.outbox.stats().queued == 0
    assert grown > 8 << 20
    assert bench.paths.database.stat().st_size < 2 << 20
    assert bench.outbox.next_wakeup is None


def test_database_damaged_while_running_is_begun_anew_and_every_lost_event_counted(bench: Bench) -> None:
    """A worn SD card gives no warning; what it took must not be missing without a word."""
    bench.record(count=1000, label="x" * 4000)  # more than SQLite's page cache holds
    bench.commit()
    for path in (bench.paths.database, bench.paths.database.with_name("holdfast.db-wal")):
        path.write_bytes(os.urandom(path.stat().st_size))
    bench.connect()
    bench.record(label="after")
    bench.commit()
    delivered = bench.answer_all()

    assert "database-rebuilt" in bench.conditions
    assert any(b"dev.holdfast.loss" in publish.payload and b'"damaged"' in publish.payload for publish in delivered)
    assert bench.outbox.stats().lost == {"damaged": 1000}
    assert any(b'"label":"after"' in publish.payload for publish in delivered)
    assert min(publish.seq for publish in delivered) > 1000
