"""What this device is and which profile fits it: the one way from the operator's words to facts, for core and commands alike.

All who ask get the same facts and so the same fingerprint: a plan that one stored is found by the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from agent import resources
from agent.device.facts import BUILT_IN, Facts, Finding
from agent.device.profiles.profile import Profile
from agent.device.profiles.selection import Selection, load_profiles, select
from agent.device.runtimes.catalogue import find_runtimes
from agent.device.survey.probing import DEFAULT_TIMEOUT_S, probe_facts
from agent.device.survey.tried import Tried
from agent.errors import HoldfastError


def recognise(
    named: Sequence[str] = (),
    profile: str | None = None,
    *,
    profiles: Path | None = None,
    tried: Tried | None = None,
    stop: threading.Event | None = None,
    first: Callable[[Facts], None] = lambda _: None,
) -> tuple[Facts, Selection]:
    """Probe the device, choose its profile, and probe again where that profile names runtimes of its own.

    Args:
        named: The operator's `device.runtimes`. One that is not there is a finding: what else is there still runs.
        profile: The operator's `device.profile`.
        profiles: The operator's `device.profiles`, a folder.
        tried: What worked at an earlier start.
        stop: Ends it within a tenth of a second, with facts as far as they came.
        first: As `probe_facts` calls it.

    Raises:
        HoldfastError: no profile has that name, or the profiles do not fit together.
    """
    known = _known_profiles(profiles)
    facts = look(named, tried=tried, stop=stop, first=first)
    selection = select(facts, known, profile)
    more = [runtime for runtime in selection.profile.runtimes if runtime not in named]
    if more and not (stop and stop.is_set()):
        facts = look((*named, *more), tried=tried, stop=stop)
        selection = select(facts, known, profile)
    return facts, selection


def profile_for(facts: Facts, profile: str | None = None, *, profiles: Path | None = None) -> Profile:
    """Return the profile that fits facts which are known already.

    Raises:
        HoldfastError: as `recognise`.
    """
    return select(facts, _known_profiles(profiles), profile).profile


def _known_profiles(own: Path | None) -> Sequence[Profile]:
    return load_profiles([resources.device_profiles(), *([own] if own else [])])


def look(
    named: Sequence[str] = (),
    timeout_s: float = DEFAULT_TIMEOUT_S,
    *,
    tried: Tried | None = None,
    stop: threading.Event | None = None,
    first: Callable[[Facts], None] = lambda _: None,
) -> Facts:
    """Probe with every runtime that is here or named; one that cannot be found is a finding."""
    runtimes, findings = [BUILT_IN], []
    for each in ((), *((name,) for name in named)):
        try:
            runtimes += find_runtimes(each)
        except HoldfastError as error:
            findings.append(Finding(str(error.where), f"{error.message}; {error.hint}"))
    facts = probe_facts(tuple(dict.fromkeys(runtimes)), timeout_s, tried=tried, stop=stop, first=first)
    return replace(facts, findings=(*facts.findings, *findings))
