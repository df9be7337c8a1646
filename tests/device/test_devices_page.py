"""docs/devices.md says what the files say: its tables are made from them, its example is a profile, no provider is left out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from agent import resources
from agent.cli.profile import conditions
from agent.device.profiles.profile import CandidateSpec, Profile
from agent.device.profiles.provideroptions import PLAIN_CPU, PROVIDERS
from agent.device.profiles.selection import check, load_profile, load_profiles, select

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "devices.md"


@pytest.fixture(scope="module")
def shipped():
    return load_profiles([resources.device_profiles()])


def replace_block(name: str, text: str) -> None:
    """Check that the page holds this text between its marks; HOLDFAST_WRITE_DOCS=1 writes it anew."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, _, rest = PAGE.read_text().partition(begin)
    _, _, after = rest.partition(end)
    if os.environ.get("HOLDFAST_WRITE_DOCS") == "1":
        PAGE.write_text(before + begin + text + end + after)
    assert begin + text + end in PAGE.read_text()


def table(*rows: Iterable[str]) -> str:
    """Return rows as a Markdown table, the first one its head."""
    head, *rest = ["| " + " | ".join(row) + " |\n" for row in rows]
    return head + re.sub(r"[^|\n]+", " --- ", head) + "".join(rest)


def short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


def tried(specs: Iterable[CandidateSpec]) -> str:
    """Return `OpenVINO npu: int8, fp16; CPU: fp32`; variants that several candidates of a device have count once."""
    variants: dict[str, dict[str, None]] = {}
    for spec in specs:
        variants.setdefault(place(spec), {}).update(dict.fromkeys(spec.variants))
    return "; ".join(f"{name}: {', '.join(names)}" for name, names in variants.items())


def place(spec: CandidateSpec) -> str:
    return short(spec.provider) + ("" if spec.provider == PLAIN_CPU else f" {spec.device_type}")


def origin_of(device: str) -> tuple[str, str]:
    """Return a device's title and whether its file was recorded or constructed."""
    file = HERE / "facts" / f"{device}.json"
    if file.is_file():
        document = json.loads(file.read_text())
        return document["title"], document["origin"]
    first = (HERE / "devices" / f"{device}.txt").read_text().splitlines()[0]
    origin, title = re.match(r"# (recorded|constructed)[^:]*: (?:an? )?([^;]*)", first).groups()
    return title[:1].upper() + title[1:], origin


def test_the_table_of_devices_is_current(shipped, known_facts):
    """What is promised for a device is what the files give it."""
    devices = sorted(path.stem for folder in ("facts", "devices") for path in (HERE / folder).iterdir())
    rows = []
    for device in devices:
        facts = known_facts(device)
        profile = select(facts, shipped).profile
        usable = {(each.provider, each.device_type) for each in facts.ep_devices if each.unusable is None}
        unusable = sorted({f"{short(each.provider)} {each.device_type}" for each in facts.ep_devices if each.unusable})
        places = dict.fromkeys(
            place(spec) for spec in profile.candidates if (spec.provider, spec.device_type) in usable
        )
        note = f"; unusable: {', '.join(unusable)}" if unusable else ""
        rows.append((*origin_of(device), f"`{profile.name}`", ", ".join(places) + note))

    replace_block("devices", table(("device", "facts", "profiles", "tried, in this order"), *sorted(rows)))


def test_the_table_of_profiles_is_current(shipped):
    """How each is recognised, and what it tries."""

    def row(profile: Profile) -> tuple[str, ...]:
        name = f"[`{profile.name}`](../device_profiles/{profile.name}.yaml)"
        limits = f"{profile.limits.memory_mb} MiB, {profile.limits.compile_s:g} s"
        return name, profile.description, conditions(profile), tried(profile.candidates), limits

    kinds = sorted(shipped, key=lambda profile: (profile.accelerator is not None, profile.name))
    head = ("profile", "for", "recognised by", "tries, in this order", "memory, time to compile")
    replace_block("profiles", table(head, *(row(profile) for profile in kinds)))


def test_the_example_is_a_profile_that_wins(tmp_path, shipped, known_facts):
    """An example that does not work is worse than none."""
    text = PAGE.read_text().partition("```yaml\n")[2].partition("```")[0]
    name = re.search(r"^name: (\S+)", text, re.MULTILINE)[1]
    (tmp_path / f"{name}.yaml").write_text(text)
    mine = load_profile(tmp_path / f"{name}.yaml")

    assert check([*shipped, mine]) == []
    assert select(known_facts("qualcomm-rb3gen2-qnn"), [*shipped, mine]).profile.name == f"aarch64-dotprod+{name}"


def test_every_provider_is_in_the_table_of_what_was_verified():
    """What nobody ever ran must be said as plainly as what was measured."""
    verified = PAGE.read_text().partition("## Verified where")[2]

    assert [provider for provider in PROVIDERS if short(provider) not in verified] == []
