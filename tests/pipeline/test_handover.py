from __future__ import annotations

import threading

from agent.pipeline.handover import Latest, Queue


def test_queue_keeps_order_and_makes_the_giver_wait(eventually):
    """Nothing is lost where everything counts."""
    queue: Queue[int] = Queue(2)
    given = []

    def give() -> None:
        for number in range(5):
            queue.put(number)
            given.append(number)
        queue.close()

    giver = threading.Thread(target=give, daemon=True)
    giver.start()
    eventually(lambda: len(given) == 2)
    assert [queue.get() for _ in range(6)] == [0, 1, 2, 3, 4, None]
    giver.join(5)


def test_aborted_queue_lets_both_sides_go(eventually):
    """A pipeline that stops must not leave a thread waiting for room."""
    queue: Queue[int] = Queue(1)
    results = []
    queue.put(1)
    giver = threading.Thread(target=lambda: results.append(queue.put(2)), daemon=True)
    giver.start()
    queue.abort()
    giver.join(5)
    assert results == [False]
    assert queue.get() is None


def test_latest_gives_the_newest_and_tells_of_the_replaced():
    """Each replaced frame is counted, so the giver must learn of it."""
    latest: Latest[str] = Latest()
    assert latest.put("old") is True
    assert latest.put("new") is False
    assert latest.get() == "new"
    assert latest.put("next") is True


def test_closed_latest_still_gives_what_is_in_it():
    """The last frame of a finite live source counts."""
    latest: Latest[str] = Latest()
    latest.put("last")
    latest.close()
    assert latest.get() == "last"
    assert latest.get() is None
