"""When to ask for releases: on a hint, on an operator's word, now and then, and again after a failure. No thread, no clock.

A hint is worth nothing but a question: one that names no newer timestamp version than the trusted one causes none, and
however many come, questions keep a distance. The whole device asks at once, for all of its models.
"""

from __future__ import annotations

from collections.abc import Collection

from agent.backoff import Backoff
from agent.clock import Random
from agent.health.conditions import ClearCondition, SetCondition
from agent.update.notes import Checked, CheckFailed
from agent.update.settings import UpdateSettings

Step = SetCondition | ClearCondition
MIN_GAP_S = 10.0
JITTER = 0.1
RETRY_FIRST_S, RETRY_LIMIT_S = 5.0, 900.0
PATIENCE = 3
"""Failures in a row before a person hears that no source answers: links break."""
HINT_RETRIES = 5
"""A mirror may lag behind a hint; a hint may also be a lie."""
_MAX_DIGITS = 18


def read_hint(payload: bytes) -> int | None:
    """Return the timestamp version of a hint: decimal digits, nothing else. None: it is no hint."""
    if not 0 < len(payload) <= _MAX_DIGITS or not payload.isdigit():
        return None
    return int(payload)


class CheckSchedule:
    """When the next check is due: `due_s`, monotonic seconds.

    Args:
        models: Whose answers make a round.
    """

    def __init__(self, models: Collection[str], settings: UpdateSettings, random: Random) -> None:
        self._waiting = set(models)
        self._models = frozenset(models)
        self._settings, self._random = settings, random
        self._backoff = Backoff(random, RETRY_FIRST_S, min(RETRY_LIMIT_S, settings.check_every_s))
        self._failed: dict[str, CheckFailed] = {}
        self._known = self._hinted = self._hint_retries = 0
        self._began_s = float("-inf")
        self.due_s = float("inf")

    def start(self, now_s: float) -> None:
        """The agent starts."""
        self.due_s = now_s + self._jitter()

    def hint(self, payload: bytes, now_s: float) -> None:
        """Something came on the hint's topic."""
        version = read_hint(payload)
        if version is None or version <= max(self._known, self._hinted):
            return
        self._hinted, self._hint_retries = version, 0
        self._bring_forward(now_s + self._jitter())

    def wanted(self, now_s: float) -> None:
        """The operator asks: at once. The distance is kept to what comes over the network."""
        self.due_s = min(self.due_s, now_s)

    def began(self, now_s: float) -> None:
        """A round of checks begins."""
        self._began_s = now_s
        self._waiting = set(self._models)
        self.due_s = now_s + self._settings.check_every_s * self._random.uniform(1 - JITTER, 1 + JITTER)

    def checked(self, note: Checked, now_s: float) -> list[Step]:
        """One model's answer came."""
        self._failed.pop(note.model, None)
        self._known = note.timestamp  # may fall: once a stolen key's huge version was revoked, hints count again
        return self._end_of_one(note.model, now_s)

    def failed(self, note: CheckFailed, now_s: float) -> list[Step]:
        """One model's check failed."""
        self._failed[note.model] = note
        return self._end_of_one(note.model, now_s)

    def retry(self, now_s: float) -> None:
        """What came could not be kept: ask again."""
        self._bring_forward(now_s + self._backoff.next_delay_s())

    def _end_of_one(self, model: str, now_s: float) -> list[Step]:
        self._waiting.discard(model)
        if self._waiting:
            return []
        if self._failed:
            self._bring_forward(now_s + self._backoff.next_delay_s())
        elif self._hinted > self._known and self._hint_retries < HINT_RETRIES:
            self._hint_retries += 1
            self._bring_forward(now_s + self._backoff.next_delay_s())
        else:
            self._backoff.reset()
            self._hinted = self._known
        return self._conditions()

    def _conditions(self) -> list[Step]:
        attack = next((each for each in self._failed.values() if each.is_attack), None)
        silence = next((each for each in self._failed.values() if not each.is_attack), None)
        steps: list[Step] = [ClearCondition("updates-untrusted"), ClearCondition("no-update-source")]
        if attack:
            advice = (
                attack.hint or "check who can write to the broker or the mirror, and refresh the repository's metadata"
            )
            text = f"What came as an update is refused: {attack.reason} Nothing of it was used. {_sentence(advice)}"
            steps[0] = SetCondition("updates-untrusted", "error", text)
        if silence and (silence.needs_operator or self._backoff.attempts >= PATIENCE):
            advice = silence.hint or "check `update.transports` and the network"
            text = (
                f"A check for releases failed: {silence.reason} What runs goes on, and it is asked again by itself. "
                f"{_sentence(advice)}"
            )
            steps[1] = SetCondition("no-update-source", "warning", text)
        elif silence:
            del steps[1]
        return steps

    def _bring_forward(self, at_s: float) -> None:
        self.due_s = min(self.due_s, max(at_s, self._began_s + MIN_GAP_S))

    def _jitter(self) -> float:
        return self._random.uniform(0.0, self._settings.hint_jitter_s)


def _sentence(advice: str) -> str:
    return f"{advice[0].upper()}{advice[1:]}."
