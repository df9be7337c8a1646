"""The judge of every test that kills things has to see each kind of broken promise itself."""

from __future__ import annotations

from typing import Any

from simulator.consumer import Account


def event(seq: int, id: str, *, pipeline: str = "door", device: str = "gate", **data: Any) -> dict[str, Any]:  # noqa: A002
    return {
        "id": id,
        "source": f"/devices/{device}/pipelines/{pipeline}",
        "data": {"seq": seq, "label": "person", "replayed": False, **data},
    }


def account_of(*events: dict[str, Any]) -> Account:
    account = Account()
    for each in events:
        account.add(each)
    return account


def test_a_copy_that_differs_only_in_replayed_is_a_plain_duplicate() -> None:
    """At least once means that copies are normal."""
    account = account_of(event(1, "a"), event(2, "b"), event(1, "a", replayed=True), event(1, "a"))
    assert (account.duplicates, account.altered, account.clashes, account.out_of_order) == (2, 0, 0, 0)
    assert account.seqs == {"door": [1, 2]}


def test_a_copy_with_another_content_or_number_is_altered() -> None:
    """Whoever removes duplicates by id would keep one of two different stories."""
    account = account_of(event(1, "a"), event(1, "a", label="dog"), event(3, "a"))
    assert (account.duplicates, account.altered) == (2, 2)


def test_one_number_for_two_events_is_a_clash_across_pipelines_but_not_across_devices() -> None:
    """Events are acknowledged by number, so a number used twice could delete an event that nobody has seen."""
    assert account_of(event(7, "a"), event(7, "b", pipeline="yard")).clashes == 1
    assert account_of(event(7, "a"), event(7, "b", device="tower")).clashes == 0


def test_order_counts_within_a_pipeline_and_by_first_arrival() -> None:
    """Pipelines do not wait for each other; a late copy is no disorder."""
    assert account_of(event(5, "a"), event(2, "b", pipeline="yard"), event(6, "c"), event(5, "a")).out_of_order == 0
    assert account_of(event(6, "a"), event(5, "b")).out_of_order == 1
