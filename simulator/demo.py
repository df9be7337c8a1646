"""`holdfast demo`: both flows on one machine, with nothing else installed, and an honest verdict at the end.

An embedded broker, a generated camera and a generated sensor (or the user's video and model), a consumer that keeps
an account. Half-way the link to the broker is cut for a moment. Meanwhile signed releases come over the same broker: a
better bundle, a bad one, a way back (not for the user's own model). At the end every promise is checked; a broken
one means a non-zero exit.
"""

from __future__ import annotations

import logging
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from paho.mqtt.enums import MQTTProtocolVersion
from rich.console import Console, RenderableType
from rich.live import Live

from agent.app import Core
from agent.clock import SystemClock, SystemRandom
from agent.paths import hold_state, open_state
from agent.resources import shipped_bundle
from agent.settings import Settings
from agent.status import Status
from simulator.broker import EmbeddedBroker
from simulator.consumer import Account, Consumer
from simulator.demo_releases import CHANNEL, MODEL, ReleaseStory
from simulator.demo_screen import screen
from simulator.link import FaultyLink

app = typer.Typer(help="See it work: generated camera and sensor, our own models, a broker inside.")
FAREWELL_S = 10.0
"""How long the last events may take to reach the consumer after the sources ended."""
PREPARING_S = 300.0
"""A plan that takes longer is a broken promise of its own."""
OUTAGE_S = 3.0
SAMPLE_FRAMES = 48
"""Half for calibration, half for judging: enough to see a variant fail, soon enough for somebody who waits."""
SHORTEST_WITH_OUTAGE_S = 10.0
WEB_FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""Rich's picture would fetch its font from a server; a picture in a README should not."""


@app.command()
def demo(
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0, help="Seconds to run once the plan is measured, and the releases' time; else until Ctrl-C."
        ),
    ] = None,
    video: Annotated[
        Path | None, typer.Option(exists=True, help="A video file instead of the generated camera.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(exists=True, help="An .onnx file, or a built bundle's folder, instead of our own.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Keep state here, so that a second run reuses the plan.")
    ] = None,
    capture: Annotated[Path | None, typer.Option(help="Write the last screen to this .svg file.")] = None,
) -> None:
    """See it work: facts, the plan while it is measured, then live counters, latencies and the latest events."""
    logging.disable(logging.WARNING)  # the screen shows conditions; log lines would tear it
    with ExitStack() as stack:
        scratch = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-demo-", ignore_cleanup_errors=True))
        )
        bundle = bundle_of(model, video, scratch)
        broker = stack.enter_context(EmbeddedBroker())
        link = stack.enter_context(FaultyLink("127.0.0.1", broker.port))
        consumer = stack.enter_context(Consumer(broker.port, protocol=MQTTProtocolVersion.MQTTv311))
        paths = open_state(state_dir or scratch / "state")
        stack.enter_context(hold_state(paths))
        consumer.subscribed.wait(5)
        story = None
        if model is None:
            story = ReleaseStory(shipped_bundle(bundle), broker.port, paths, scratch, SystemClock())
            stack.enter_context(story)
        core = Core(
            demo_settings(link.port, bundle, video, story),
            paths,
            SystemClock(),
            SystemRandom(),
            exit_when_finished=True,
            farewell_s=FAREWELL_S,
        )
        run = DemoRun(core, consumer, link, seconds, story)
        run.show(capture)
    for line in summary(core.status, consumer.account):
        typer.echo(line)
    for line in story.lines if story else ():
        typer.echo(f"releases: {line}")
    broken = broken_promises(core.status, consumer.account)
    if story and story.broken:
        broken.append(story.broken)
    for line in broken:
        typer.secho(f"BROKEN: {line}", fg="red", err=True)
    raise typer.Exit(1 if broken else 0)


def demo_settings(port: int, bundle: str, video: Path | None, story: ReleaseStory | None) -> Settings:
    """The operator's file that the demo amounts to."""
    camera: dict[str, Any] = {"source": str(video) if video else "scene://conveyor?seed=7&fps=15", "model": MODEL}
    if video is None:
        camera["zones"] = {"belt-end": {"coordinates": [(0.6, 0.0), (1.0, 0.0), (1.0, 1.0), (0.6, 1.0)]}}
        camera["rules"] = {
            "parcel": {"when": "track"},
            "arrived": {"when": "enter", "zone": "belt-end", "for_s": 0.2},
            "damage": {"when": "enter", "labels": ["damaged"], "for_s": 0.3},
        }
    settings: dict[str, Any] = {
        "device": {"name": "demo-box"},
        "mqtt": {"host": "127.0.0.1", "port": port, "keepalive_s": 5, "protocol": "3.1.1"},  # all that amqtt speaks
        "models": {MODEL: {"bundle": bundle}},
        "cameras": {"camera": camera},
    }
    if story is not None:
        settings["models"][MODEL]["channel"] = CHANNEL
        settings["update"] = {"root": story.root, "hint_jitter_s": 0, "probation": {"seconds": 3, "samples": 30}}
        settings["models"]["sensor-model"] = {"bundle": "bearing"}
        settings["sensors"] = {
            "motor": {"source": "signal://bearing?seed=3&kind=outer&fault_at=6", "model": "sensor-model"}
        }
    return Settings.model_validate(settings)


class DemoRun:
    """Core in a thread, the screen in this one, and the cut link half-way."""

    def __init__(
        self, core: Core, consumer: Consumer, link: FaultyLink, seconds: float | None, story: ReleaseStory | None
    ) -> None:
        self._story = story
        self._core = core
        self._consumer = consumer
        self._link = link
        self._seconds = seconds
        self._clock = SystemClock()
        self._ended = threading.Event()
        self._note = "measuring what runs best on this device; Ctrl-C ends"

    def show(self, capture: Path | None) -> None:
        """Run to the end, showing the screen; write the last one to `capture` (SVG)."""
        console = Console()
        thread = threading.Thread(target=self._run_core, name="core")
        thread.start()
        try:
            with Live(console=console, refresh_per_second=4, auto_refresh=False) as live:
                for _ in self._moments():
                    if console.is_terminal:
                        live.update(self._screen(), refresh=True)
        except KeyboardInterrupt:
            self._note = "stopped"
        finally:
            self._core.stop()
            thread.join()
        recorder = Console(record=True, width=150, file=None if console.is_terminal else console.file)
        recorder.print(self._screen())
        if capture:
            svg = recorder.export_svg(title="holdfast demo")
            capture.write_text(WEB_FONTS.sub("", svg), "utf-8")

    def _run_core(self) -> None:
        try:
            self._core.run()
        finally:
            self._ended.set()

    def _screen(self) -> RenderableType:
        return screen(self._core.status, self._consumer.account, self._story.lines if self._story else (), self._note)

    def _moments(self) -> Iterator[None]:
        """Four a second, until the time is over or core ended."""
        with self._outage() as is_cut:
            preparing_until_s = self._clock.monotonic() + PREPARING_S
            running_since_s: float | None = None
            while not self._clock.wait(self._ended, 0.25):
                now_s = self._clock.monotonic()
                if running_since_s is None and is_running(self._core.status):
                    running_since_s = now_s
                    self._note = "running; Ctrl-C ends"
                if running_since_s is None and now_s > preparing_until_s:
                    return
                if running_since_s is not None and self._story:
                    self._story.go_on()
                if running_since_s is not None and self._seconds is not None:
                    elapsed_s = now_s - running_since_s
                    is_cut(wanted=self._seconds / 2 <= elapsed_s < self._seconds / 2 + OUTAGE_S)
                    if elapsed_s >= self._seconds and (self._story is None or self._story.is_over):
                        return
                yield

    @contextmanager
    def _outage(self) -> Iterator[Any]:
        """Give a function that cuts and restores the link; the link is whole again afterwards."""
        is_cut_now = False

        def cut(*, wanted: bool) -> None:
            nonlocal is_cut_now
            if wanted == is_cut_now or (self._seconds or 0) < SHORTEST_WITH_OUTAGE_S:
                return
            is_cut_now = wanted
            if wanted:
                self._link.partition()
                self._link.reset()
                self._note = "the link to the broker is cut: events wait on disk"
            else:
                self._link.heal()
                self._note = "the link is back: the events that waited are delivered"

        try:
            yield cut
        finally:
            self._link.heal()


def is_running(status: Status) -> bool:
    """Whether every pipeline brought a first sample through."""
    return bool(status.pipelines) and all(each.beat is not None and each.beat["samples"] for each in status.pipelines)


def summary(status: Status, account: Account) -> list[str]:
    """The account at the end, in a few lines."""
    outbox = status.outbox
    lines = [
        f"events: {outbox.recorded} recorded, {outbox.delivered} delivered, {outbox.queued} still kept, "
        f"{sum((outbox.lost or {}).values())} lost; the consumer has {len(account.ids)} "
        f"({account.duplicates} came twice, {account.out_of_order} out of order)"
    ]
    lines += [f"{each.name}: {each.plan.chosen.label}: {each.plan.reason}" for each in status.models if each.plan]
    for pipeline in status.pipelines:
        if pipeline.beat:
            age = pipeline.beat["stages"]["age"]
            lines.append(
                f"{pipeline.name}: {pipeline.beat['samples']} samples, age at emit p50 {age['p50_ms']:.2f} ms, "
                f"p99 {age['p99_ms']:.2f} ms, dropped {dict(pipeline.beat['dropped']) or 'none'}"
            )
    return lines


def broken_promises(status: Status, account: Account) -> list[str]:
    """Each promise that did not hold, in a sentence."""
    broken = []
    outbox = status.outbox
    lost = sum((outbox.lost or {}).values())
    if len(account.ids) != outbox.recorded - lost - outbox.queued:
        broken.append(f"{outbox.recorded} events were recorded, {len(account.ids)} reached the consumer")
    if lost or outbox.queued:
        broken.append(f"{lost} events were lost and {outbox.queued} did not leave within {FAREWELL_S:.0f} s")
    if account.out_of_order or account.clashes:
        broken.append(f"{account.out_of_order} events came out of order, {account.clashes} shared a number")
    broken += [
        f"{each.name} brought nothing through" for each in status.pipelines if not each.beat or not each.beat["samples"]
    ]
    broken += [
        f"{each.name} was to run on {each.plan.chosen.provider}, but ran on {each.nodes}"
        for each in status.models
        if each.plan and each.nodes and set(each.nodes) != {each.plan.chosen.provider}
    ]
    broken += [f"{each.name}: {each.text}" for each in status.conditions if each.severity == "error"]
    return broken


def bundle_of(model: Path | None, video: Path | None, scratch: Path) -> str:
    """Return the bundle to run: our own; a built one, as it is; or one built now from the user's .onnx file.

    Frames spread over the user's video serve as calibration and, others of them, as golden samples.

    Raises:
        HoldfastError: the model is refused, with the question to answer.
    """
    if model is None:
        return "parcels"
    if model.is_dir():
        return str(model)
    from bundles.build import build
    from bundles.options import Options

    options = Options()
    if video is not None:
        frames = spread_frames(video, scratch / "frames")
        options = Options(calibration=frames[0], golden=frames[1])
    console = Console(stderr=True)
    with console.status("building a bundle from the model …") as status:
        report = build(model, scratch / "bundle", options, lambda step: status.update(f"{step} …"))
    for variant in report.variants:
        console.print(f"{variant.name}: {variant.verdict}", style="dim")
    return str(scratch / "bundle")


def spread_frames(video: Path, folder: Path) -> tuple[Path, Path]:
    """Write frames spread over a video as PNG files, by turns into two folders: for calibration and for judging."""
    import cv2

    folders = folder / "calibration", folder / "golden"
    for each in folders:
        each.mkdir(parents=True)
    capture = cv2.VideoCapture(str(video))
    step = max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) // SAMPLE_FRAMES)
    index = 0
    while capture.grab():
        if index % step == 0 and (read := capture.retrieve())[0]:
            cv2.imwrite(str(folders[index // step % 2] / f"{index:06d}.png"), read[1])
        index += 1
    capture.release()
    return folders
