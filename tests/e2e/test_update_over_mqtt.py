"""The README's task "Update a device over MQTT", as it is written, on a laptop, a server, boxes and a real broker.

Everybody has a client certificate and only the rights of the ACL in docs/releases.md. The commands come from the page.
"""

from __future__ import annotations

import queue
import re
import signal
import ssl
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from agent.bundle.finding import find_bundle
from agent.update.documents import Assignment, BundleReference
from agent.update.selection import Device, selects
from simulator.consumer import Consumer
from simulator.demo_releases import rewrite
from simulator.mirror import Mirror
from tests.e2e.site import REPOSITORY, Box, Page, Site, wait

README = REPOSITORY / "README.md"
RELEASES = REPOSITORY / "docs" / "releases.md"
CAMERA = {"cameras": {"door": {"source": "scene://conveyor?seed=7&fps=10"}}}
QUICK = {
    "HOLDFAST__UPDATE__HINT_JITTER_S": "0.2",
    "HOLDFAST__UPDATE__PROBATION__SECONDS": "2",
    "HOLDFAST__UPDATE__PROBATION__SAMPLES": "15",
}
REFRESH = ("holdfast", "release", "refresh")


@pytest.fixture(scope="module")
def page() -> Page:
    """Return the task."""
    return Page(README, "Update a device over MQTT")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, page: Page) -> Iterator[Site]:
    """Return the factory on its first day: keys made and moved, an empty repository on the server."""
    acl = Page(RELEASES, "The broker's ACL").block("acl")
    with Site(tmp_path_factory.mktemp("site"), acl) as site:
        site.laptop.run(page.command("holdfast", "release", "init"))
        site.laptop.run(page.command("holdfast", "release", "add", "releases", "parcels"))
        site.laptop.run(page.command("rsync", "-a", "--remove-source-files"))
        bring(site, page)
        yield site


@pytest.fixture(autouse=True)
def _tools(need_tool: Callable[[str], str]) -> None:
    need_tool("mosquitto")
    need_tool("openssl")


def bring(site: Site, page: Page) -> None:
    """Copy what the laptop signed to the server, and make it current there."""
    site.laptop.run(page.command("rsync", "-a", "--ignore-existing"))
    site.server.run(page.command("ssh", "server")[2:])


class Guest:
    """A client with somebody's certificate. A context manager."""

    def __init__(self, site: Site, name: str) -> None:
        self._codes: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.tls_set_context(tls_of(site, name))
        self._client.on_connect = lambda *_: self._codes.put("connected")
        self._client.on_subscribe = lambda *_: self._codes.put("subscribed")
        self._client.on_publish = lambda _client, _data, _mid, code, _more: self._codes.put(str(code))
        self._client.on_message = lambda _client, _data, message: self._heard.put(message.topic)
        self._client.connect("127.0.0.1", site.broker.port)

    def publish(self, topic: str) -> str:
        """Return what the broker answers."""
        self._client.publish(topic, b"7", qos=1)
        code = self._codes.get(timeout=20)
        return "Success" if code == "No matching subscribers" else code

    def subscribe(self, topic: str) -> None:
        """mosquitto 2.0 grants everything, and then delivers what the ACL allows."""
        self._client.subscribe(topic, 1)
        assert self._codes.get(timeout=20) == "subscribed"

    def hears_until(self, topic: str) -> set[str]:
        """Return the topics of what came, up to a message on `topic`."""
        heard = {self._heard.get(timeout=20)}
        while topic not in heard:
            heard.add(self._heard.get(timeout=20))
        return heard

    def __enter__(self) -> Self:
        self._client.loop_start()
        assert self._codes.get(timeout=20) == "connected"
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def tls_of(site: Site, name: str) -> ssl.SSLContext:
    """Return somebody's way into the broker."""
    pair = site.certificates.issue(name)
    tls = ssl.create_default_context(cafile=site.certificates.ca)
    tls.load_cert_chain(pair.cert, pair.key)
    return tls


def place_of(name: str) -> int:
    """Return the smallest percentage of channel stable's first release that takes a device in."""
    bundle = BundleReference(name="parcels", version="2.0.0", manifest_sha256="0" * 64)
    shares = (Assignment(release=1, bundle=bundle, percent=percent, seed="stable/1") for percent in range(101))
    return next(each.percent for each in shares if selects(each, Device(name)))


def consumer(site: Site, box: Box) -> Consumer:
    """Return who takes a box's events."""
    return Consumer(site.broker.port, device=box.name, name=f"consumer-{box.name}", tls=tls_of(site, "consumer"))


def private_keys(folder: Path) -> set[str]:
    """Return the names of all files that hold a signing key (those of TLS are the only others)."""
    files = (each for each in folder.rglob("*") if each.is_file() and each.suffix != ".key")
    return {each.name for each in files if b"PRIVATE KEY" in each.read_bytes()}


def test_readme_task_works_as_it_is_written(site: Site, page: Page):
    """Factory bundle, 25 %, 100 %, and back, by the page's words; every event names the bundle that made it, none is lost."""
    assert private_keys(site.laptop.folder) == {"root.pem", "targets.pem"}
    assert private_keys(site.server.folder) == {"snapshot.pem", "timestamp.pem"}
    site.server.start(page.command("holdfast", "release", "serve"))
    names = [f"line3-box{number}" for number in range(1, 40)]
    inside = next(name for name in names if place_of(name) <= 25)
    outside = next(name for name in names if place_of(name) > 25)
    boxes = [site.box(name, page.block("yaml"), CAMERA, **QUICK) for name in (inside, outside)]
    consumers = [consumer(site, box) for box in boxes]
    with consumers[0], consumers[1]:
        for box, taker in zip(boxes, consumers, strict=True):
            assert taker.subscribed.wait(20)
            box.start(Page(README, "Watch a camera and publish what it sees").command("holdfast", "run"))
        for box, taker in zip(boxes, consumers, strict=True):
            assert taker.wait_for(2, 60), box.log()
        follow_the_story(site, page, boxes)
        for box, taker in zip(boxes, consumers, strict=True):
            check_events(box, taker)
    check_history(page, boxes)
    page.command("pip", "install")  # what the tests run in
    assert not page.unused, "the page has commands that this test does not run"


def follow_the_story(site: Site, page: Page, boxes: list[Box]) -> None:
    """25 %, 100 %, back."""
    rewrite(
        find_bundle("parcels"),
        site.laptop.folder / "parcels-2.bundle",
        "2.0.0",
        {"decoder": {"confidence_threshold": 0.45}},
    )
    site.laptop.run(page.command("holdfast", "release", "add", "releases", "parcels-2.bundle"))
    said = site.laptop.run(page.command("holdfast", "release", "publish"))
    assert "refresh" in said and "devices see it now" not in said, "the laptop has no key for that"
    bring(site, page)
    first, second = boxes
    wait(lambda: first.stands_at("confirmed", "2.0.0"), 60, lambda: (first.report(), first.log()))
    wait(lambda: second.timestamp() == first.timestamp(), 30, second.log)
    assert fleet(site, page) == {first.name: "parcels 2.0.0", second.name: "the factory bundle"}

    site.laptop.run(page.command("holdfast", "release", "promote"))
    bring(site, page)
    wait(lambda: second.stands_at("confirmed", "2.0.0"), 60, lambda: (second.report(), second.log()))

    site.laptop.run(page.command("holdfast", "release", "rollback"))
    bring(site, page)
    for box in boxes:
        wait(lambda box=box: box.stands_at("confirmed", "1.0.0"), 60, lambda box=box: (box.report(), box.log()))
    assert fleet(site, page) == dict.fromkeys((first.name, second.name), "parcels 1.0.0")


def fleet(site: Site, page: Page) -> dict[str, str]:
    """Return what runs where, as the page's command says it."""
    devices = site.laptop.json(page.command("holdfast", "release", "status"))
    table = site.laptop.run(page.command("holdfast", "release", "status"))
    runs = {}
    for device in devices:
        (model,) = device["update"]["models"].values()
        runs[device["device_id"]] = f"{model['name']} {model['version']}" if model["version"] else "the factory bundle"
        assert device["device_id"] in table and runs[device["device_id"]] in table
    return runs


def check_events(box: Box, taker: Consumer) -> None:
    """Every event once, without a gap, and by the bundle that ran then."""
    before = len(taker.account.ids)
    assert taker.wait_for(before + 3, 30), "the bundle that is back sees parcels, too"
    box.stop()
    taker.settle(1.0)
    (seqs,) = taker.account.seqs.values()
    assert seqs == list(range(1, len(seqs) + 1))
    assert taker.account.clashes == taker.account.altered == 0
    events = sorted(taker.account.events, key=lambda event: event["data"]["seq"])
    made_by = [event["data"]["model"]["version"] for event in events]
    assert [version for version, _ in groupby(made_by)] == ["1.0.0", "2.0.0", "1.0.0"]


def check_history(page: Page, boxes: list[Box]) -> None:
    """What `holdfast update` says on a box when all is over."""
    status = page.command("holdfast", "update", "status")
    history = [*status[:-1], "history"]
    for box in boxes:
        (model,) = box.json(status)["models"].values()
        assert (model["state"], model["version"], model["confirmed"]) == ("confirmed", "1.0.0", True)
        steps = box.json(history)
        confirmed = [step["version"] for step in reversed(steps) if step["after"] == "confirmed"]
        assert confirmed == ["2.0.0", "1.0.0"]
        assert not [step for step in steps if step["after"] in ("refused", "rolled_back")]
        assert "2.0.0" in box.run(history)


@pytest.fixture(scope="module")
def field(site: Site, page: Page) -> list[str]:
    """Give the shipped bundle to everybody in the channel `field`; return the command of its server."""
    words = ["holdfast", "release", "publish", "releases", "--channel", "field", "--bundle", "parcels"]
    site.laptop.run([*words, "--version", "1.0.0"])
    bring(site, page)
    return page.command("holdfast", "release", "serve")


def new_box(site: Site, name: str, prefix: str = "holdfast", **update: Any) -> Box:
    """Set up a device that has no bundle at all, so that every byte must come."""
    tls = {"ca": "ca.pem", "cert": f"{name}.pem", "key": f"{name}.key"}
    sections = {
        **CAMERA,
        "device": {"name": name},
        "mqtt": {"host": "127.0.0.1", "tls": tls, "topic_prefix": prefix},
        "models": {"parcels": {"channel": "field"}},
        "update": {"root": "root.json", **update},
    }
    return site.box(name, "{}", sections, **QUICK)


@pytest.fixture(scope="module")
def unanswered(site: Site, field: list[str]) -> Iterator[Box]:
    """Return a device on whose topics no release server is; started early, since it waits for half a minute."""
    with Mirror(site.folder / "server" / "srv" / "releases") as mirror:
        box = new_box(site, "yard-box2", "elsewhere", transports=["mqtt", mirror.url])
        box.start(["holdfast", "run"])
        yield box


def is_under_way(box: Box) -> bool:
    """Whether some of the bytes are here, and some are not."""
    progress = box.report()["progress"]
    return bool(progress and 0 < progress["done_bytes"] < progress["total_bytes"] * 3 // 4)


@pytest.mark.usefixtures("unanswered")
def test_killed_server_is_stood_in_for_by_the_other_one(site: Site, field: list[str]):
    """Two servers share the requests; the one that dies takes only what was on its way with it."""
    servers = [site.server.start(field, f"log{number}") for number in range(2)]
    box = new_box(site, "yard-box1", rate_limit_kib_s=150)
    box.start(["holdfast", "run"])
    wait(lambda: is_under_way(box), 60, lambda: (box.report(), box.log()))
    assert "% of" in box.run(["holdfast", "update", "status"])
    servers[0].kill()
    wait(lambda: box.stands_at("confirmed", "1.0.0"), 90, lambda: (box.report(), box.log()))
    box.stop()
    servers[1].send_signal(signal.SIGTERM)
    servers[1].wait(20)
    steps = [step["after"] for step in reversed(box.json(["holdfast", "update", "history"]))]
    assert steps == ["fetching", "staged", "trying", "switching", "probation", "confirmed"], "no fetch was begun again"
    said = re.search(r"served (\d+) pieces", site.server.log("log1"))
    assert said and int(said[1]) > 0


def test_device_goes_on_over_http_where_no_release_server_answers(unanswered: Box):
    """MQTT is first in its list; its silence is waited for once, not once a blob."""
    wait(lambda: unanswered.stands_at("confirmed", "1.0.0"), 120, lambda: (unanswered.report(), unanswered.log()))
    unanswered.stop()
    assert "mqtt is passed over" not in unanswered.log(), "the check has found out already"


def test_stick_brings_a_release_to_a_box_without_any_network(site: Site, field: list[str]):
    """`release export`, carried there."""
    site.server.run(
        ["holdfast", "release", "export", "/srv/releases", str(site.folder / "stick"), "--channel", "field"]
    )
    box = new_box(site, "yard-box3", transports=[str(site.folder / "stick")])
    box.start(["holdfast", "run"])
    wait(lambda: box.stands_at("confirmed", "1.0.0"), 60, lambda: (box.report(), box.log()))
    box.stop()


def test_certificate_of_a_box_opens_its_own_topics_and_nothing_else(site: Site):
    """What a thief of one box could do with its key, by the reason codes of MQTT 5."""
    with Guest(site, "thief-box") as thief, Guest(site, "release-server") as server, Guest(site, "alice") as alice:
        own = "holdfast/devices/thief-box"
        allowed = ("status", "info", "health", "metrics", "update", "events/door", "fetch/request")
        assert {topic: thief.publish(f"{own}/{topic}") for topic in allowed} == dict.fromkeys(allowed, "Success")
        forbidden = (
            "holdfast/releases/timestamp",
            f"{own}/fetch/reply",
            f"{own}/ack",
            *(f"holdfast/devices/other/{topic}" for topic in (*allowed, "fetch/reply", "ack")),
        )
        assert {topic: thief.publish(topic) for topic in forbidden} == dict.fromkeys(forbidden, "Not authorized")
        assert alice.publish(f"{own}/fetch/reply") == "Not authorized"
        for guest in (thief, alice):
            guest.subscribe("#")
        heard = ("holdfast/devices/other/fetch/reply", "holdfast/releases/timestamp", f"{own}/fetch/reply")
        assert [server.publish(topic) for topic in heard] == ["Success"] * 3
        assert thief.publish(f"{own}/update") == "Success"
        assert thief.hears_until(heard[-1]) == set(heard[1:]), "its own answers and the hint, not what others fetch"
        assert {topic.rsplit("/")[-1] for topic in alice.hears_until(f"{own}/update")} <= {
            "status",
            "info",
            "update",
            "timestamp",
        }
