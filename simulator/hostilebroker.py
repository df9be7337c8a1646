"""What the owner of a broker can do to devices that fetch releases over it.

`HostileServer` answers devices' requests from a repository's folder, honestly or with mischief on cue (`simulator.mischief`).
Alone on a broker it is the man in the middle: nothing reaches a device but through it. Beside an honest server
(`only_false`) it says nothing honest and races with false answers. `hint` publishes what no repository would, retained;
`replay_answers` gives old answers again, `babble` garbage.

Needs a broker that lets it read and write everything: an ACL would keep out what the broker's owner can do anyway.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from agent.clock import Clock, SystemClock
from agent.errors import UnavailableError
from agent.mqtt.pieces import PieceError, Reply, Request, Status, decode_request, encode_reply
from agent.mqtt.topics import Topics, fetch_requests, release_hint
from simulator.mischief import EVERYWHERE, GIANT_BYTES, Cues, Mischief, Shelf, turn_a_bit

Hint = Literal["future", "past", "giant", "garbage", "empty", "negative", "not ascii", "json"]
HINTS: dict[Hint, bytes] = {
    "future": b"9999999999",
    "past": b"1",
    "giant": b"9" * (4 << 20),
    "garbage": bytes(range(256)),
    "empty": b"",
    "negative": b"-1",
    "not ascii": "٤٢".encode(),  # digits to str.isdigit, not to us
    "json": b'{"url": "http://attacker.example/", "version": 7}',
}
DRIP_S = 0.5
GIANT_PAYLOAD_BYTES = 8 << 20
FLOOD_REPLIES = 500
CONNECTED_WITHIN_S = 10.0
_REMEMBERED = 4096


class HostileServer:
    """A responder on the broker; a context manager.

    Args:
        port: The broker's.
        honest: The repository's folder.
        other: An older state of it, or another release, for `replay` and `mix`.
        prefix: Of all topics.
        only_false: Say nothing where no mischief is on.
        clock: For the slow drip.
    """

    def __init__(
        self,
        port: int,
        honest: Path,
        other: Path | None = None,
        *,
        host: str = "127.0.0.1",
        prefix: str = "holdfast",
        only_false: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self.cues = Cues(EVERYWHERE | {"crossed"})
        self.hints: Counter[Hint] = Counter()
        self.requests: list[tuple[str, Request]] = []
        """Device and what it asked for, in order."""
        self.sent_bytes = 0
        """Of payloads on reply topics."""
        self.false_answers = 0
        self._address, self._prefix, self._only_false = (host, port), prefix, only_false
        self._shelf, self._clock = Shelf(honest, other), clock or SystemClock()
        self._stopping, self._subscribed = threading.Event(), threading.Event()
        self._told = threading.Condition()
        self._devices: set[str] = set()
        self._answers: deque[tuple[str, bytes]] = deque(maxlen=_REMEMBERED)
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.on_connect = lambda client, *_: client.subscribe(fetch_requests(prefix, is_shared=False), 0)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message

    def hint(self, kind: Hint) -> None:
        """Publish a false hint, retained."""
        self._publish(release_hint(self._prefix), HINTS[kind], retain=True, qos=1)
        self.hints[kind] += 1

    def wait_for_false_answers(self, count: int, timeout_s: float) -> bool:
        """Wait until so many were published; a race that it lost is over before it spoke."""
        with self._told:
            return self._told.wait_for(lambda: self.false_answers >= count, timeout_s)

    def replay_answers(self) -> int:
        """Publish all answers given so far once more, oldest first, as they were; return how many."""
        answers = list(self._answers)
        for topic, payload in answers:
            self._publish(topic, payload)
        return len(answers)

    def babble(self, device: str, count: int = 200) -> None:
        """Publish garbage where a device waits for answers: of every length up to `count`, and of every status."""
        topic = Topics(self._prefix, device).fetch_reply
        for number in range(count):
            self._publish(topic, bytes((number * 7 + place) % 256 for place in range(number)))
            self._publish(topic, bytes((1, number % 8)) + bytes(number % 40))

    def __enter__(self) -> Self:
        self._client.connect(*self._address)
        self._client.loop_start()
        if not self._subscribed.wait(CONNECTED_WITHIN_S):
            raise UnavailableError("the broker does not take the hostile server's subscription")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._client.disconnect()
        self._client.loop_stop()

    # -- in paho's thread ---------------------------------------------------------------------------------------------

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        device = message.topic.split("/")[-3]
        self._devices.add(device)
        try:
            request = decode_request(bytes(message.payload))
        except PieceError:
            return
        self.requests.append((device, request))
        mischief = self.cues.next(request.path)
        if mischief is None and self._only_false:
            return
        if mischief == "slow drip":  # others must not wait
            threading.Thread(target=self._drip, args=(device, request), daemon=True).start()
            return
        for payload in self._payloads(request, mischief):
            self._answer(device, payload, mischief)

    def _answer(self, device: str, payload: bytes, mischief: Mischief | None) -> None:
        topics = [Topics(self._prefix, device).fetch_reply]
        if mischief == "crossed":
            topics += [Topics(self._prefix, other).fetch_reply for other in self._devices - {device}]
        for topic in topics:
            self._answers.append((topic, payload))
            self._publish(topic, payload)
        with self._told:
            self.sent_bytes += len(payload)
            self.false_answers += mischief is not None
            self._told.notify_all()

    def _drip(self, device: str, request: Request) -> None:
        for payload in self._payloads(request, None):
            if self._clock.wait(self._stopping, DRIP_S):
                return
            self._answer(device, payload, "slow drip")

    def _payloads(self, request: Request, mischief: Mischief | None) -> Iterator[bytes]:
        """Give what is published for a request, in order."""
        content = self._shelf.instead(request.path) if mischief in {"replay", "mix"} else self._shelf.read(request.path)
        if content is None or mischief == "not there":
            yield encode_reply(Reply(Status.NOT_THERE, request.request_id))
            return
        replies = [
            Reply(Status.OK, request.request_id, index, len(content), _piece(content, request, index))
            for index in request.wanted
        ]
        yield from (encode_reply(reply) for reply in _spoil(replies, mischief, request))

    def _publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 0) -> None:
        self._client.publish(topic, payload, qos=qos, retain=retain)


def _piece(content: bytes, request: Request, index: int) -> bytes:
    return content[index * request.piece_bytes :][: request.piece_bytes]


def _spoil(replies: list[Reply], mischief: Mischief | None, request: Request) -> list[Reply]:
    """Return the replies that are sent in place of these."""
    last = replies[-1]
    match mischief:
        case "wrong bytes":
            return [_with(reply, turn_a_bit(reply.data)) for reply in replies]
        case "truncated":
            return [_with(reply, reply.data[: len(reply.data) // 2]) for reply in replies]
        case "endless":
            more = range(last.index + 1, last.index + 1 + FLOOD_REPLIES)
            flood = [
                Reply(Status.OK, request.request_id, index, GIANT_BYTES, bytes(request.piece_bytes)) for index in more
            ]
            return [*(_with(reply, reply.data, GIANT_BYTES) for reply in replies), *flood]
        case "giant":
            return [_with(reply, reply.data + bytes(GIANT_PAYLOAD_BYTES), GIANT_BYTES) for reply in replies[:1]]
        case "reorder":
            return replies[::-1]
        case "duplicate":
            return [reply for reply in replies for _ in range(2)]
        case "drop":
            return []
        case _:
            return replies


def _with(reply: Reply, data: bytes, size_bytes: int | None = None) -> Reply:
    size = reply.size_bytes if size_bytes is None else size_bytes
    return Reply(reply.status, reply.request_id, reply.index, size, data)
