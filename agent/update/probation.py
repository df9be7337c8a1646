"""Whether a new bundle is good: what core sees of its worker goes in, a verdict comes out. Pure.

It has failed on a crash (the second, or the first where it never ran ten seconds, or one that would need a fourth start,
agent restarts included), a stall, invalid answers above one per cent, or p99 or memory over its gate for five
observations in a row. It has passed when both the time and the samples are reached and no gate is missed at that moment:
a short probation must not end before a p99 can be judged. Time counts while samples come: a camera that is away proves
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.update.notes import Health
from agent.update.record import Gates
from agent.update.settings import ProbationSettings

MAX_STARTS = 3
PROVEN_S = 10.0
"""A worker that ran so long loads and infers: one crash of it may be a driver's bad day."""
INVALID_SHARE = 0.01
ENOUGH_SAMPLES = 100
"""A p99 of fewer is their maximum, the first slow inferences included."""
IN_A_ROW = 5
"""Observations, one a second: the old session's memory goes, and other programs' load passes, within that."""
LONGEST_PAUSE_S = 10.0
"""Of the time between two samples, so much counts at most."""
SLOWER_THAN_OLD = 3.0


@dataclass(frozen=True, slots=True)
class Watch:
    """What has been seen of a bundle so far. `starts`, `seconds` and `samples` outlive the agent's process."""

    starts: int = 1
    seconds: float = 0.0
    samples: int = 0
    invalid: int = 0
    over: int = 0
    """Observations in a row over a gate."""
    longest_run_s: float = 0.0
    crashes: int = 0
    last: Health | None = None
    last_sample_s: float = 0.0

    def observe(self, health: Health, gates: Gates, now_s: float) -> Watch:
        """Return what is known after one more observation. Counters that went down began anew."""
        last = self.last
        samples = _gain(health.samples, last.samples if last else 0)
        crashes = _gain(health.crashes, last.crashes if last else 0)
        seconds = min(now_s - self.last_sample_s, LONGEST_PAUSE_S) if samples and self.last else 0.0
        return replace(
            self,
            starts=self.starts + crashes,
            crashes=self.crashes + crashes,
            seconds=self.seconds + seconds,
            samples=self.samples + samples,
            invalid=self.invalid + _gain(health.invalid_answers, last.invalid_answers if last else 0),
            over=self.over + 1 if _over(health, gates) else 0,
            longest_run_s=max(self.longest_run_s, 0.0 if crashes else health.running_s),
            last=health,
            last_sample_s=now_s if samples or last is None else self.last_sample_s,
        )

    def failure(self, gates: Gates) -> str:
        """Return why the bundle has failed; empty: it has not."""
        health = self.last
        if health is None:
            return ""
        proven_s = max(self.longest_run_s, self.seconds)
        if self.starts > MAX_STARTS or self.crashes >= 2 or (self.crashes == 1 and proven_s < PROVEN_S):
            return f"the worker crashed: {health.last_failure or 'no reason known'}"
        if health.is_stalled:
            return f"the worker stalled: {health.last_failure or 'its source is open, but nothing comes through'}"
        if self.invalid > INVALID_SHARE * max(self.samples + self.invalid, ENOUGH_SAMPLES):
            return f"{self.invalid} of {self.samples + self.invalid} answers were invalid"
        return _over(health, gates) if self.over >= IN_A_ROW else ""

    def has_passed(self, settings: ProbationSettings, gates: Gates) -> bool:
        """Return whether it was watched for long enough. One that seems to be over a gate is watched until that is certain."""
        if self.seconds < settings.seconds or self.samples < settings.samples:
            return False
        return self.last is None or not _over(self.last, gates, enough_samples=0)


def _over(health: Health, gates: Gates, *, enough_samples: int = ENOUGH_SAMPLES) -> str:
    p99_ms = health.p99_ms if health.samples >= enough_samples else None
    if gates.p99_ms is not None and p99_ms is not None and p99_ms > gates.p99_ms:
        return f"p99 of inference is {p99_ms:.1f} ms and may be {gates.p99_ms:.1f} ms"
    if gates.rss_bytes is not None and health.rss_bytes is not None and health.rss_bytes > gates.rss_bytes:
        return f"the worker takes {health.rss_bytes >> 20} MiB and may take {gates.rss_bytes >> 20} MiB"
    return ""


def _gain(new: int, old: int) -> int:
    return new - old if new >= old else new
