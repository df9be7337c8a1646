"""From profile files to the one profile of this device.

Takes folders of YAML files and facts; gives profiles, the selected one, and why every other one was not. The most
specific match wins, two equally specific ones are an error, and `check` finds such pairs before any device does. It
measures nothing and looks at no hardware.

Specificity compares, in this order, and the first difference decides: whether the board is named, the provider, the
device type, *how many* CPU features are asked for, the CPU's vendor, the architecture, the operating system. A named
board says more than any feature it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from agent import yamlfile
from agent.device.facts import Facts
from agent.device.hardware.features import ALL_FEATURES, ARCHITECTURE_OF, BASELINE, with_implied
from agent.device.profile import Match, Profile
from agent.errors import ConfigurationError, OperatorError, Problem

Specificity = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one profile."""

    profile: str
    is_match: bool
    text: str
    """`selected`, or why it was not: the first condition that failed, or the more specific profile."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The profile of this device, and a verdict on every one."""

    profile: Profile
    verdicts: tuple[Verdict, ...]


def load_profiles(folders: Iterable[Path]) -> list[Profile]:
    """Read every *.yaml of the folders, by name. One in a later folder replaces one of the same name before it.

    Raises:
        ConfigurationError: with every problem of every file, each with file:line:column and key.
    """
    profiles: dict[str, Profile] = {}
    problems: list[Problem] = []
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            try:
                profile = load_profile(path)
                profiles[profile.name] = profile
            except ConfigurationError as error:
                problems.extend(error.problems)
    if problems:
        raise ConfigurationError(problems)
    return sorted(profiles.values(), key=lambda profile: profile.name)


def load_profile(path: Path) -> Profile:
    """Read one profile; its name is the file's, so that no folder can hold two of one name.

    Raises:
        ConfigurationError: the file is no profile; every problem has its line.
    """
    document = yamlfile.load(path)
    profile = yamlfile.validate(Profile, document, str(path))
    problems = [
        Problem(yamlfile.where(document.positions, key, str(path)), yamlfile.spell(key), message, hint)
        for key, message, hint in _wrong(profile, path.stem)
    ]
    if problems:
        raise ConfigurationError(problems)
    return profile


def _wrong(profile: Profile, stem: str) -> Iterable[tuple[yamlfile.KeyPath, str, str | None]]:
    """Give what a type cannot say: key, message, hint."""
    if profile.name != stem:
        yield ("name",), f"is `{profile.name}`, but the file is called `{stem}`", "give both the same name"
    match = profile.match
    for feature in sorted(match.cpu_features - ALL_FEATURES):
        meant = yamlfile.nearest(feature, sorted(ALL_FEATURES))
        hint = f"did you mean `{meant}`?" if meant else f"known: {', '.join(sorted(ALL_FEATURES))}"
        yield ("match", "cpu_features"), f"unknown feature `{feature}`", hint
    architectures = {ARCHITECTURE_OF[feature] for feature in match.cpu_features & ALL_FEATURES}
    architectures |= {match.architecture} if match.architecture else set()
    if len(architectures) > 1:
        both = " and ".join(sorted(architectures))
        yield ("match",), f"can never match: its conditions belong to {both}", "keep those of one architecture"
    if not profile.candidates:
        yield ("candidates",), "is empty: there is nothing to try", "list at least one provider with its variants"
    for index, candidate in enumerate(profile.candidates):
        for key in ("variants", "threads"):
            if not getattr(candidate, key):
                yield ("candidates", index, key), "is empty: this candidate yields nothing to try", None
        for threads in candidate.threads:
            if isinstance(threads, int) and threads < 1:
                yield ("candidates", index, "threads"), f"found {threads}, expected at least 1", None


def select(facts: Facts, profiles: Sequence[Profile], name: str | None = None) -> Selection:
    """Choose the profile for these facts.

    Args:
        facts: What the probe saw.
        profiles: All there are.
        name: The operator's own choice, which needs to match nothing.

    Raises:
        OperatorError: no profile matches, two equally specific ones do, or `name` is not among them.
    """
    mismatches = {profile.name: mismatch(profile.match, facts) for profile in profiles}
    chosen = named(name, profiles) if name else _most_specific([p for p in profiles if mismatches[p.name] is None])
    return Selection(chosen, tuple(_verdict(profile, chosen, mismatches[profile.name], name) for profile in profiles))


def mismatch(match: Match, facts: Facts) -> str | None:
    """Return the first condition that does not hold, in words; None where all hold."""
    providers = {device.provider for device in facts.ep_devices}
    types = {d.device_type for d in facts.ep_devices if match.provider in (None, d.provider)}
    missing = match.cpu_features - facts.cpu.features
    conditions = (
        (match.os in (None, facts.os), f"os is {facts.os}, not {match.os}"),
        (
            match.architecture in (None, facts.architecture),
            f"architecture is {facts.architecture}, not {match.architecture}",
        ),
        (
            match.board is None or match.board.lower() in facts.board.lower(),
            f"board is {facts.board or 'unknown'}, not {match.board}",
        ),
        (
            match.cpu_vendor is None or match.cpu_vendor.lower() == facts.cpu.vendor.lower(),
            f"CPU is by {facts.cpu.vendor or 'an unknown vendor'}, not {match.cpu_vendor}",
        ),
        (not missing, f"CPU lacks {', '.join(sorted(missing))}"),
        (match.provider is None or match.provider in providers, f"no device of {match.provider}"),
        (match.device_type is None or match.device_type in types, f"no {match.device_type} device"),
    )
    return next((text for holds, text in conditions if not holds), None)


def specificity(match: Match) -> Specificity:
    """Return the weights of a match, most important first; see the head of this module."""
    return (
        int(match.board is not None),
        int(match.provider is not None),
        int(match.device_type is not None),
        len(match.cpu_features),
        int(match.cpu_vendor is not None),
        int(match.architecture is not None),
        int(match.os is not None),
    )


def named(name: str, profiles: Sequence[Profile]) -> Profile:
    """Return the profile of that name.

    Raises:
        OperatorError: there is none, with the nearest name.
    """
    for profile in profiles:
        if profile.name == name:
            return profile
    names = [profile.name for profile in profiles]
    meant = yamlfile.nearest(name, names)
    hint = f"did you mean `{meant}`?" if meant else f"there are: {', '.join(names)}"
    raise OperatorError(f"there is no device profile `{name}`", hint=hint)


def _most_specific(matching: list[Profile]) -> Profile:
    if not matching:
        raise OperatorError("no device profile matches this device", hint="add one without conditions")
    best = max(specificity(profile.match) for profile in matching)
    first, *others = [profile for profile in matching if specificity(profile.match) == best]
    if others:
        names = ", ".join(profile.name for profile in (first, *others))
        raise OperatorError(
            f"these device profiles match equally well: {names}",
            hint="add a condition to one of them, or name one under `device: {profile: …}`",
        )
    return first


def _verdict(profile: Profile, chosen: Profile, why_not: str | None, name: str | None) -> Verdict:
    if profile is chosen:
        text = "selected: named in the configuration" if name else "selected: the most specific match"
        return Verdict(profile.name, why_not is None, text)
    if why_not is None:
        return Verdict(
            profile.name, is_match=True, text=f"matches, but {chosen.name} {'was named' if name else 'says more'}"
        )
    return Verdict(profile.name, is_match=False, text=why_not)


def check(profiles: Sequence[Profile]) -> list[Problem]:
    """Return what is wrong among profiles: pairs that could match one device equally well, and those never selected."""
    problems = []
    for first, second in combinations(profiles, 2):
        if specificity(first.match) == specificity(second.match) and _may_both_match(first.match, second.match):
            names = f"{first.name}, {second.name}"
            message = "a device that matches both cannot be decided: they are equally specific"
            problems.append(Problem(names, "match", message, "add a condition to one of them"))
    for profile in profiles:
        if shadow := next((other for other in profiles if _shadows(other.match, profile.match)), None):
            message = f"is never selected: every device that it matches also matches {shadow.name}, which says more"
            problems.append(Problem(profile.name, "match", message, f"remove it, or loosen {shadow.name}"))
    return problems


def _may_both_match(first: Match, second: Match) -> bool:
    """Whether one device could satisfy both. Two boards can both be in one name only when one contains the other."""
    if first.board and second.board and not _contains(first.board, second.board):
        return False
    pairs = (
        (first.os, second.os),
        (_architecture(first), _architecture(second)),
        (first.cpu_vendor and first.cpu_vendor.lower(), second.cpu_vendor and second.cpu_vendor.lower()),
    )
    return all(a is None or b is None or a == b for a, b in pairs)


def _contains(first: str, second: str) -> bool:
    return first.lower() in second.lower() or second.lower() in first.lower()


def _architecture(match: Match) -> str | None:
    """Return the architecture that the match asks for, by name or by a feature that only one has."""
    implied = (ARCHITECTURE_OF[feature] for feature in match.cpu_features if feature in ARCHITECTURE_OF)
    return match.architecture or next(implied, None)


def _shadows(other: Match, match: Match) -> bool:
    """Whether `other` holds wherever `match` does, and says more."""
    has = with_implied(match.cpu_features) | BASELINE.get(_architecture(match) or "", frozenset())
    covered = (
        other.os in (None, match.os)
        and other.architecture in (None, _architecture(match))
        and (other.board is None or (match.board is not None and other.board.lower() in match.board.lower()))
        and other.cpu_vendor in (None, match.cpu_vendor)
        and other.cpu_features <= has
        and other.provider in (None, match.provider)
        and other.device_type in (None, match.device_type)
    )
    return covered and specificity(other) > specificity(match)
