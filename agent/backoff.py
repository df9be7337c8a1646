"""Growing delays between attempts, as a value: no thread, no sleep, chance handed in."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.clock import Random


@dataclass(slots=True)
class Backoff:
    """Exponential back-off with "equal jitter": half of the delay is fixed, half is drawn.

    The rule is from Brooker, "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015); the fixed half
    keeps a fleet from retrying at once after a broker comes back.
    """

    random: Random
    first_s: float = 1.0
    limit_s: float = 60.0
    factor: float = 2.0
    attempts: int = field(default=0, init=False)

    def next_delay_s(self) -> float:
        """Count one more failed attempt and return the seconds to wait before the next."""
        ceiling = min(self.limit_s, self.first_s * self.factor ** min(self.attempts, 32))
        self.attempts += 1
        return ceiling / 2 + self.random.uniform(0, ceiling / 2)

    def reset(self) -> None:
        """Forget the failures: something worked."""
        self.attempts = 0
