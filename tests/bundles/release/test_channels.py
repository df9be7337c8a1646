"""What a channel's document becomes: release numbers only rise, and nobody loses what they were given."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import OperatorError
from agent.update.documents import Assignment, BundleReference, ChannelDocument, PipelineOverrides
from bundles.release import channels

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)


def bundle(version: str) -> BundleReference:
    return BundleReference(name="tiny", version=version, manifest_sha256=hashlib.sha256(version.encode()).hexdigest())


def publish(document: ChannelDocument | None, version: str, **options) -> ChannelDocument:
    return channels.publish(document, bundle(version), channel="stable", issued=NOW, **options)


def versions(document: ChannelDocument) -> list[str]:
    return [each.bundle.version for each in document.assignments]


def test_newest_assignment_stands_in_front_and_older_ones_stay_while_they_are_needed():
    """75 % of the devices still live by the older one."""
    document = publish(publish(None, "1"), "2", percent=25)
    assert versions(document) == ["2", "1"] and document.release == 2
    assert [each.release for each in document.assignments] == [2, 1]
    assert versions(publish(document, "3")) == ["3"]


def test_promotion_keeps_the_seed_and_raises_both_numbers():
    """Whoever has it keeps it."""
    before = publish(publish(None, "1"), "2", percent=25)
    after = channels.promote(before, 50, issued=NOW)
    assert after.assignments[0].seed == before.assignments[0].seed
    assert after.release == after.assignments[0].release == 3
    assert after.assignments[1] == before.assignments[1]
    assert versions(channels.promote(after, 100, issued=NOW)) == ["2"]


def test_percent_only_rises():
    """Fewer devices is a rollback for some of them: said with a reason or not at all."""
    document = publish(None, "1", percent=50)
    for percent in (50, 25):
        with pytest.raises(OperatorError, match="is not more"):
            channels.promote(document, percent, issued=NOW)


def test_rollback_reaches_exactly_the_devices_that_were_given_the_newer_one():
    """The others have no reason to move, and keep their release number."""
    document = publish(publish(None, "1"), "2", percent=25, groups=["lab"], window="22:00-04:00")
    back = channels.rollback(document, bundle("1"), "false alarms", issued=NOW)
    front, rest = back.assignments
    assert (front.bundle.version, front.percent, front.groups, front.release) == ("1", 25, ("lab",), 3)
    assert front.seed == document.assignments[0].seed and front.window is None
    assert front.rollback.from_version == "2" and front.rollback.reason == "false alarms"
    assert rest == document.assignments[1]


def test_rollback_brings_the_older_settings_back_too():
    """Thresholds of the newer model do not fit the older one."""
    old = {"door": PipelineOverrides(min_score=0.4)}
    document = publish(publish(None, "1", pipelines=old), "2", percent=25, pipelines={"door": PipelineOverrides()})
    assert channels.rollback(document, bundle("1"), "why", issued=NOW).assignments[0].pipelines == old


def test_rollback_of_a_full_release_leaves_one_assignment():
    """And the number rises."""
    document = channels.rollback(publish(publish(None, "1"), "2"), bundle("1"), "why", issued=NOW)
    assert versions(document) == ["1"] and document.release == 3


def test_limits_of_devices_hold_before_anything_is_signed():
    """64 assignments, 256 kB, known characters: refused here, in words."""
    document = publish(None, "0", percent=1)
    for number in range(1, 64):
        document = publish(document, str(number), percent=1)
    with pytest.raises(OperatorError, match="more than 64"):
        publish(document, "64", percent=1)
    big = {"door": PipelineOverrides(zones={"yard": "x" * 300_000})}
    with pytest.raises(OperatorError, match="devices take 256000"):
        channels.encode(publish(None, "1", pipelines=big))
    with pytest.raises(OperatorError, match="groups"):
        publish(None, "1", groups=["not a group"])
    with pytest.raises(OperatorError, match="window"):
        publish(None, "1", window="9 to 5")


def selected(document: ChannelDocument | list[Assignment], device: str, groups: set[str]) -> str | None:
    """The rule that devices follow (documents.Assignment.percent), written a second time."""
    for each in document if isinstance(document, list) else document.assignments:
        number = int.from_bytes(hashlib.sha256(f"{each.seed}/{device}".encode()).digest())
        if (not each.groups or groups & set(each.groups)) and number * 100 < each.percent * 2**256:
            return each.bundle.version
    return None


steps = st.lists(
    st.tuples(
        st.sampled_from(["publish", "promote", "rollback"]),
        st.sampled_from("1234"),
        st.sampled_from([0, 10, 50, 100]),
        st.sets(st.sampled_from(["a", "b"])),
    ),
    max_size=12,
)


@given(steps)
def test_dropping_assignments_never_changes_what_a_device_gets(history):
    """Against the same history with nothing dropped; and both numbers only rise."""
    document, kept = None, []
    for verb, version, percent, groups in history:
        before = document.release if document else 0
        try:
            if verb == "publish":
                document = publish(document, version, percent=percent, groups=sorted(groups))
                kept = [document.assignments[0], *kept]
            elif document is not None and verb == "promote":
                old = document.assignments[0]
                document = channels.promote(document, percent, issued=NOW)
                kept = [document.assignments[0] if each == old else each for each in kept]
            elif document is not None:
                old = document.assignments[0].bundle
                back = channels.rollback(document, bundle(version), "why", issued=NOW)
                by_seed = {(each.seed): each for each in back.assignments}
                kept = [
                    by_seed.get(each.seed, each.model_copy(update={"bundle": bundle(version)}))
                    if each.bundle == old
                    else each
                    for each in kept
                ]
                document = back
        except OperatorError:
            continue
        if document is not None and document.release != before:
            assert document.release == before + 1
            assert all(each.release <= document.release for each in document.assignments)
            for number in range(20):
                for member in (set(), {"a"}, {"b"}, {"a", "b"}):
                    device = f"device-{number}"
                    assert selected(document, device, member) == selected(kept, device, member)
