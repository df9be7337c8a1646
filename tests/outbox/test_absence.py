"""A broker that is gone for a minute, in virtual time: what is recorded meanwhile waits on disk and arrives in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.outbox.conftest import Bench


@pytest.mark.parametrize("delivery", ["broker", "consumer"])
def test_broker_that_is_gone_for_a_minute_loses_nothing(make_bench: Callable[..., Bench], delivery: str) -> None:
    """Also where it had taken events just before it went, and forgot them."""
    bench = make_bench(delivery=delivery)
    bench.connect()
    bench.record(count=3)
    bench.commit()
    bench.disconnect()
    bench.published.clear()
    for _ in range(60):
        bench.record(count=2)
        bench.pass_time(1.0)
    assert bench.outbox.stats().queued == 123
    assert not bench.published
    bench.connect()
    arrived: list[int] = []
    while bench.published:
        for publish in [bench.published.pop(0) for _ in range(len(bench.published))]:
            bench.answer(publish)
            arrived.append(publish.seq)
            bench.do(bench.outbox.consumer_acknowledged(b"%d" % publish.seq, bench.now))
        bench.commit()
    assert arrived == list(range(1, 124))
    stats = bench.outbox.stats()
    assert (stats.queued, stats.recorded, dict(stats.lost)) == (0, 123, {})
