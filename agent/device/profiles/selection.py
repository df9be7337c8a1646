"""From profile files to the one profile of this device.

Takes folders of YAML files and facts; gives the profile and why every part of it was chosen and every other file was
not. It measures nothing and looks at no hardware.

A file is for a processor or board, or for an accelerator's provider. Of the first kind the most specific match wins;
of the second kind the most specific match for each provider that offers a device here, usable or not: what cannot be
used is refused by name later, not missing. A provider that no file is for gets the one for `any`.
`agent.device.profiles.profile.compose` makes one profile of them. Two equally specific matches are an error, and `check` finds
such pairs before any device does.

Specificity compares, in this order, and the first difference decides: whether the board is named, *how many* CPU
features are asked for, the CPU's vendor, the architecture, the operating system. A named board says more than any
feature it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from agent import yamlfile
from agent.device.facts import Facts
from agent.device.hardware.features import ALL_FEATURES, ARCHITECTURE_OF, ARCHITECTURES, BASELINE, with_implied
from agent.device.profiles.profile import ANY, CandidateSpec, Match, Profile, compose
from agent.device.profiles.provideroptions import PLAIN_CPU, PROVIDERS, complaint, meant_by, session_complaint
from agent.errors import ConfigurationError, OperatorError, Problem

Specificity = tuple[int, ...]
MOST_COMBINATIONS = 64
"""Of one candidate of a profile."""
Wrong = tuple[yamlfile.KeyPath, str, str | None]
"""A key, what is wrong with it, and a hint."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one profile."""

    profile: str
    is_match: bool
    text: str
    """`selected`, or why it was not: the first condition that failed, or the more specific profile."""
    is_selected: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    """The profile of this device, and a verdict on every file."""

    profile: Profile
    """Of the processor and its accelerators, as one. Its `runtimes` are also those of accelerators' profiles whose conditions
    hold but whose provider is not here yet: it can only be here once they are opened."""
    verdicts: tuple[Verdict, ...]


def load_profiles(folders: Iterable[Path]) -> list[Profile]:
    """Read every *.yaml of the folders, by name. One in a later folder replaces one of the same name before it.

    Raises:
        ConfigurationError: with every problem of every file, each with file:line:column and key.
        OperatorError: a folder does not exist.
    """
    profiles: dict[str, Profile] = {}
    problems: list[Problem] = []
    for folder in folders:
        if not folder.is_dir():
            raise OperatorError("there is no such folder", where=str(folder), hint="name a folder of *.yaml files")
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


def _wrong(profile: Profile, stem: str) -> Iterable[Wrong]:
    """Give what a type cannot say: key, message, hint."""
    if profile.name != stem:
        yield ("name",), f"is `{profile.name}`, but the file is called `{stem}`", "give both the same name"
    match = profile.match
    for feature in sorted(match.cpu_features - ALL_FEATURES):
        meant = yamlfile.nearest(feature, sorted(ALL_FEATURES))
        hint = f"did you mean `{meant}`?" if meant else f"known: {', '.join(sorted(ALL_FEATURES))}"
        yield ("match", "cpu_features"), f"unknown feature `{feature}`", hint
    if meant := _architecture_meant(match.architecture or ""):
        yield ("match", "architecture"), f"no device says that it is `{match.architecture}`", f"did you mean `{meant}`?"
    architectures = {ARCHITECTURE_OF[feature] for feature in match.cpu_features & ALL_FEATURES}
    architectures |= {match.architecture} if match.architecture else set()
    if len(architectures) > 1:
        both = " and ".join(sorted(architectures))
        yield ("match",), f"can never match: its conditions belong to {both}", "keep those of one architecture"
    if not profile.candidates:
        yield ("candidates",), "is empty: there is nothing to try", "list at least one provider with its variants"
    if profile.accelerator:
        yield from _wrong_for_an_accelerator(profile, profile.accelerator)
    elif any(candidate.provider == ANY for candidate in profile.candidates):
        yield (
            ("candidates",),
            f"`{ANY}` is for an accelerator's profile",
            "write `accelerator: any`, or a provider's name",
        )
    for index, candidate in enumerate(profile.candidates):
        yield from ((("candidates", index, *key), text, hint) for key, text, hint in _wrong_candidate(candidate))


def _architecture_meant(word: str) -> str | None:
    """Return the name used here for an architecture by another name, or misspelt; None for one that is right or a stranger."""
    known = sorted(set(ARCHITECTURE_OF.values()))
    return None if word in known else ARCHITECTURES.get(word.lower()) or yamlfile.nearest(word, known)


def _wrong_for_an_accelerator(profile: Profile, provider: str) -> Iterable[Wrong]:
    if provider == PLAIN_CPU:
        yield ("accelerator",), f"{PLAIN_CPU} is every processor's own", "leave it out: then this is for a processor"
    if "tune" in profile.model_fields_set:
        message = "an accelerator's profile has none: a device has one budget and one objective"
        yield ("tune",), message, "write it in the processor's profile, or the objective under `models:`"
    for index, candidate in enumerate(profile.candidates):
        if candidate.provider != provider:
            message = f"found {candidate.provider}, but this profile is for {provider}"
            yield ("candidates", index, "provider"), message, "give each provider a profile of its own"


def _wrong_candidate(candidate: CandidateSpec) -> Iterable[Wrong]:
    if meant := meant_by(candidate.provider):
        yield ("provider",), f"ONNX Runtime knows no {candidate.provider}", f"did you mean `{meant}`?"
    for key in ("variants", "threads", "options", "session_options"):
        if key in candidate.model_fields_set and _is_empty(getattr(candidate, key)):
            yield (key,), "is empty: this candidate yields nothing to try", None
    for threads in candidate.threads:
        if isinstance(threads, int) and threads < 1:
            yield ("threads",), f"found {threads}, expected at least 1", None
    if (count := combinations_of(candidate)) > MOST_COMBINATIONS:
        yield (
            (),
            f"makes {count:,} combinations to try, expected at most {MOST_COMBINATIONS}",
            "each takes a second or more, and an accelerator compiles for each: list fewer values",
        )
    for option, value in _each(candidate.options):
        if wrong := complaint(candidate.provider, option, value):
            yield ("options", option), *wrong
    for option, value in _each(candidate.session_options):
        if wrong := session_complaint(option, value):
            yield ("session_options", option), *wrong


def combinations_of(candidate: CandidateSpec) -> int:
    """Return how many ways to run a model this makes, at most."""
    threads = candidate.threads if candidate.device_type == "cpu" else candidate.threads[:1]
    lists = (candidate.variants, threads, *candidate.options.values(), *candidate.session_options.values())
    return math.prod(len(each) for each in lists if not isinstance(each, str))


def _is_empty(value: Sequence[object] | Mapping[str, object]) -> bool:
    return () in value.values() if isinstance(value, Mapping) else not value


def _each(options: Mapping[str, str | tuple[str, ...]]) -> Iterable[tuple[str, str]]:
    for option, values in options.items():
        yield from ((option, value) for value in ((values,) if isinstance(values, str) else values))


def select(facts: Facts, profiles: Sequence[Profile], name: str | None = None) -> Selection:
    """Choose the profile for these facts.

    Args:
        facts: What the probe saw.
        profiles: All there are.
        name: The operator's own choice: exactly this is used, whatever it matches. Parts are joined by `+` as in
            `raspberry-pi-5+my-npu`; where none is for a processor, the best match of those is added.

    Raises:
        OperatorError: no profile matches, two equally specific ones do, or `name` is not among them.
    """
    parts = _named_parts(name, profiles) if name else []
    named_processors = _of_kind(parts, None)
    processor = named_processors[0] if named_processors else _best_processor(facts, profiles)
    strangers = _strangers(facts, profiles, processor)
    mismatches = {profile.name: _why_not(profile, facts, strangers) for profile in profiles}
    if not name:
        parts = [*_best_accelerators([each for each in profiles if mismatches[each.name] is None])]
    accelerators = sorted((part for part in parts if part.accelerator not in (None, ANY)), key=_try_first)
    accelerators += [part.for_provider(each) for part in _of_kind(parts, ANY) for each in strangers]
    waiting = [] if name else [each for each in profiles if each.accelerator and not mismatch(each.match, facts)]
    runtimes = dict.fromkeys(runtime for each in (processor, *parts, *waiting) for runtime in each.runtimes)
    chosen = {part.accelerator: part for part in (processor, *parts)}
    return Selection(
        profile=compose(processor, accelerators).model_copy(update={"runtimes": tuple(runtimes)}),
        verdicts=tuple(_verdict(each, chosen, mismatches[each.name], name) for each in profiles),
    )


def _best_processor(facts: Facts, profiles: Sequence[Profile]) -> Profile:
    return _most_specific([each for each in _of_kind(profiles, None) if mismatch(each.match, facts) is None])


def _best_accelerators(matching: Sequence[Profile]) -> Iterable[Profile]:
    for provider in sorted({profile.accelerator for profile in matching if profile.accelerator}):
        yield _most_specific(_of_kind(matching, provider))


def _of_kind(profiles: Sequence[Profile], provider: str | None) -> list[Profile]:
    return [profile for profile in profiles if profile.accelerator == provider]


def _try_first(profile: Profile) -> tuple[int, str]:
    """Sort accelerators: the operator's own, then the hardware's own provider before one that serves every vendor's."""
    provider = profile.accelerator or ""
    known = list(PROVIDERS)
    return known.index(provider) if provider in known else -1, provider


def _strangers(facts: Facts, profiles: Sequence[Profile], processor: Profile) -> list[str]:
    """Return the providers that offer a device here, and that neither a profile is for nor the processor's tries."""
    known = {profile.accelerator for profile in profiles} | {each.provider for each in processor.candidates}
    return sorted({device.provider for device in facts.devices_here} - known - {PLAIN_CPU})


def _why_not(profile: Profile, facts: Facts, strangers: Sequence[str]) -> str | None:
    """Return why the profile does not hold here; None where it does."""
    provider = profile.accelerator
    if provider == ANY and not strangers:
        return "no provider is here that has no profile of its own"
    if provider in (None, ANY) or any(device.provider == provider for device in facts.devices_here):
        return mismatch(profile.match, facts)
    text = f"no device of {provider}"
    if vain := sorted({each.device_type for each in facts.in_vain if each.provider == provider}):
        return f"{text}: it is installed, but no {' or '.join(vain)} for it is here"
    listed = next((each for each in facts.accelerators if each.provider == provider), None)
    return f"{text}: {listed.name} is here, but nothing that is installed drives it" if listed else text


def mismatch(match: Match, facts: Facts) -> str | None:
    """Return the first condition that does not hold, in words; None where all hold."""
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
    )
    return next((text for holds, text in conditions if not holds), None)


def specificity(match: Match) -> Specificity:
    """Return the weights of a match, most important first; see the head of this module."""
    return (
        int(match.board is not None),
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


def _named_parts(name: str, profiles: Sequence[Profile]) -> list[Profile]:
    parts = [named(part, profiles) for part in name.split("+")]
    for first, second in combinations(parts, 2):
        if first.accelerator == second.accelerator:
            what = f"both for {first.accelerator}" if first.accelerator else "each for a processor"
            raise OperatorError(f"{first.name} and {second.name} are {what}", hint="name one of them")
    return parts


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


def _verdict(profile: Profile, chosen: Mapping[str | None, Profile], why_not: str | None, name: str | None) -> Verdict:
    winner = chosen.get(profile.accelerator)
    if profile == winner:
        named_here = name is not None and profile.name in name.split("+")
        how = "named in the configuration" if named_here else "the most specific match"
        what = "what no other profile is for" if profile.accelerator == ANY else profile.accelerator
        how += f" for {what}" if what and not named_here else ""
        return Verdict(profile.name, why_not is None, f"selected: {how}", is_selected=True)
    if why_not is not None:
        return Verdict(profile.name, is_match=False, text=why_not)
    text = f"{winner.name} says more" if winner and not name else f"{name} was named"
    return Verdict(profile.name, is_match=True, text=f"matches, but {text}")


def check(profiles: Sequence[Profile]) -> list[Problem]:
    """Return what is wrong among profiles: pairs that could match one device equally well, and those never selected."""
    problems = []
    for first, second in combinations(profiles, 2):
        if first.accelerator != second.accelerator:
            continue
        if specificity(first.match) == specificity(second.match) and _may_both_match(first.match, second.match):
            names = f"{first.name}, {second.name}"
            message = "a device that matches both cannot be decided: they are equally specific"
            hint = "add a condition to yours, or give it the name of the shipped one, which it then replaces"
            problems.append(Problem(names, "match", message, hint))
    for profile in profiles:
        rivals = _of_kind(profiles, profile.accelerator)
        if shadow := next((other for other in rivals if _shadows(other.match, profile.match)), None):
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
    )
    return covered and specificity(other) > specificity(match)
