from __future__ import annotations

import subprocess
import sys

from agent.pipeline.stages import WINDOW, Ring


def ring_of(*seconds: float) -> Ring:
    ring = Ring()
    for each in seconds:
        ring.add(each)
    return ring


def test_percentiles_are_times_that_occurred():
    """An operator who looks for the frame of a p99 must be able to find it."""
    summary = ring_of(*(number / 1000 for number in range(100, 0, -1))).summary()
    assert summary == {"count": 100, "p50_ms": 50.0, "p95_ms": 95.0, "p99_ms": 99.0}


def test_ring_forgets_all_but_the_newest_times():
    """An hour ago says nothing about now; the count goes on."""
    summary = ring_of(*[9.0] * 10, *[0.001] * WINDOW).summary()
    assert summary == {"count": WINDOW + 10, "p50_ms": 1.0, "p95_ms": 1.0, "p99_ms": 1.0}


def test_few_times_and_none_at_all():
    """A beat comes before the first sample, and soon after it."""
    assert ring_of().summary() == {"count": 0, "p50_ms": 0.0, "p95_ms": 0.0, "p99_ms": 0.0}
    assert ring_of(0.002).summary() == {"count": 1, "p50_ms": 2.0, "p95_ms": 2.0, "p99_ms": 2.0}


def test_summary_brings_no_further_module_into_the_worker():
    """numpy's percentile imports numpy.ma at its first call: 45 ms and several MiB in every worker."""
    code = (
        "import sys, numpy; from agent.pipeline.stages import Ring; ring = Ring(); ring.add(1.0); "
        "before = set(sys.modules); ring.summary(); print(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
