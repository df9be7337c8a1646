"""How a bundle does since it became active: what its worker says goes in, `Health` comes out.

Pure values and sums. A worker that is restarted begins its counts anew; what the dead ones had counted is kept here, so that
a bundle cannot wash its crashes and invalid answers away by crashing once more.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from agent.log import brief
from agent.pipeline.messages import Beat
from agent.update.notes import Health


@dataclass(slots=True)
class Watch:
    """One bundle's time in one worker. A new bundle gets a new one."""

    beat: Beat | None = None
    """The newest of the present process with this bundle."""
    since_s: float | None = None
    """When the present process began to work with this bundle; None while none does."""
    crashes: int = 0
    last_failure: str = ""
    has_stalled: bool = False
    _samples: Counter[str] = field(default_factory=Counter)
    _invalid: int = 0

    def ended(self) -> None:
        """The process is gone; what it had counted stays."""
        self._samples += self._present_samples()
        self._invalid += self._present_invalid()
        self.beat = self.since_s = None

    def crashed(self, failure: str, *, has_stalled: bool) -> None:
        """The process ended through the bundle: nobody had asked for it, and nothing else was being loaded."""
        self.crashes += 1
        self.last_failure = brief(failure)
        self.has_stalled = self.has_stalled or has_stalled

    def health(self, now_s: float) -> Health:
        """Return how it is at this moment."""
        samples = self._samples + self._present_samples()
        infer = [pipeline["stages"]["infer"] for pipeline in self.beat["pipelines"].values()] if self.beat else []
        return Health(
            running_s=0.0 if self.since_s is None else now_s - self.since_s,
            samples=min(samples.values(), default=0),
            crashes=self.crashes,
            last_failure=self.last_failure,
            invalid_answers=self._invalid + self._present_invalid(),
            p99_ms=max((times["p99_ms"] for times in infer if times["count"]), default=None),
            rss_bytes=self.beat["rss_bytes"] if self.beat else None,
            is_stalled=self.has_stalled,
        )

    def _present_samples(self) -> Counter[str]:
        beats = self.beat["pipelines"].items() if self.beat else ()
        return Counter({name: beat["bundle"]["samples"] for name, beat in beats if beat["bundle"]["samples"]})

    def _present_invalid(self) -> int:
        return sum(beat["bundle"]["invalid"] for beat in self.beat["pipelines"].values()) if self.beat else 0
