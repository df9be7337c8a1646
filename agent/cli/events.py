"""`holdfast events`: what arrives at the broker, one line an event, as any consumer would see it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.errors import OperatorError
from agent.log import printable

if TYPE_CHECKING:
    from agent.mqtt.settings import MqttSettings
    from agent.mqtt.subscriber import Arrived, Subscriber

app = typer.Typer(help="Watch the events that arrive at the broker.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Watch the events that arrive at the broker."""


@app.command()
def tail(
    *,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="The configuration file.")] = None,
    device: Annotated[str, typer.Option("--device", help="Only this device; all where none is given.")] = "+",
    ack: Annotated[
        bool, typer.Option("--ack", help="Acknowledge each event, as the consumer of `delivery: consumer` does.")
    ] = False,
    count: Annotated[int | None, typer.Option("--count", "-n", min=1, help="Stop after this many events.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each message as one line of JSON.")] = False,
) -> None:
    """Print events as they arrive, until interrupted."""
    from agent.clock import SystemRandom
    from agent.mqtt.subscriber import Subscriber

    settings = _broker_of(config)
    topic = f"{settings.topic_prefix}/devices/{device}/events/#"
    client_id = f"holdfast-tail-{SystemRandom().bytes(4).hex()}"
    with Subscriber(settings, client_id=client_id, topics=[topic]) as subscriber:
        typer.echo(f"listening to {topic} at {subscriber.where} (MQTT {subscriber.protocol})", err=True)
        _follow(subscriber, count, must_acknowledge=ack, as_json=as_json)


def _follow(subscriber: Subscriber, count: int | None, *, must_acknowledge: bool, as_json: bool) -> None:
    for number, message in enumerate(subscriber.messages(), start=1):
        event = read_event(message)
        typer.echo(json.dumps(event, separators=(",", ":"), ensure_ascii=False) if as_json else line_of(event))
        if must_acknowledge and isinstance(seq := data_of(event).get("seq"), int):
            # Printed first: an event that was acknowledged and never shown would be lost.
            subscriber.publish(ack_topic(message.topic), json.dumps({"seq": seq}).encode())
        if number == count:
            return


def ack_topic(event_topic: str) -> str:
    """Return `<prefix>/devices/<id>/ack` for a topic `<prefix>/devices/<id>/events/<pipeline>`."""
    return event_topic.rsplit("/events/", 1)[0] + "/ack"


def read_event(message: Arrived) -> dict[str, Any]:
    """Return the message as an event; what is none is shown all the same, as text under `unreadable`."""
    try:
        event = json.loads(message.payload)
    except ValueError:
        event = None
    if isinstance(event, dict):
        return event
    return {"source": message.topic, "unreadable": message.payload[:200].decode(errors="replace")}


def line_of(event: Mapping[str, Any]) -> str:
    """Return one line for people.

    Such as `2026-11-20T09:00:00.120Z box1/door #17 track new person 0.91 track 4 in yard`.
    """
    source = str(event.get("source", "?")).removeprefix("/devices/").replace("/pipelines/", "/")
    if "unreadable" in event:
        return printable(f"{source}: no event: {event['unreadable']}")
    data = data_of(event)
    kind = str(event.get("type", "?")).removeprefix("dev.holdfast.").removeprefix("event.")
    words = [str(event.get("time", "?")), source, f"#{data.get('seq', '?')}", kind]
    words += [str(data[key]) for key in ("phase", "label", "score") if data.get(key) is not None]
    words += [f"{key} {data[name]}" for key, name in _NAMED if data.get(name) is not None]
    zones = data.get("zones")
    if isinstance(zones, Mapping) and zones.get("current"):
        words.append(f"in {', '.join(map(str, zones['current']))}")
    if data.get("replayed"):
        words.append("(sent again)")
    return printable(" ".join(words))  # anybody who may write to the broker may have written it


def data_of(event: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the event's `data`; empty where it is no object."""
    data = event.get("data")
    return data if isinstance(data, Mapping) else {}


_NAMED = (("=", "value"), ("track", "track_id"), ("lost", "count"), ("by", "cause"))


def _broker_of(config: Path | None) -> MqttSettings:
    from agent.config import file as configfile

    configuration = configfile.read(config, for_run=False)
    if configuration.settings.mqtt is None:
        hint = "add `mqtt: {host: …}`"
        raise OperatorError("the configuration names no broker", where=str(configuration.file), hint=hint)
    return configuration.settings.mqtt
