"""Real models on real pictures and video, through `holdfast run` and a real broker, against a plain reference."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from simulator.broker import Mosquitto
from simulator.consumer import Consumer
from tests.e2e import reference

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast


def run_and_collect(
    holdfast: Holdfast, broker: Mosquitto, bundle: Path, source: Path
) -> dict[int, list[dict[str, Any]]]:
    """Run one camera to its end with a rule that reports every detection; return the events' data by frame id."""
    config = holdfast.write_config(
        device={"name": "bench"},
        mqtt={"host": broker.host, "port": broker.port},
        models={"model": {"bundle": str(bundle)}},
        cameras={"camera": {"source": str(source), "pace": "fast", "rules": {"all": {"when": "detect"}}}},
    )
    with Consumer(broker.port) as consumer:
        assert consumer.subscribed.wait(10)
        process = holdfast.run(config, "--exit-when-finished")
        assert process.wait(300) == 0, holdfast.log()
        consumer.settle(5)
        events = list(consumer.account.events)
    assert not consumer.account.out_of_order
    by_frame: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        by_frame[event["data"]["frame"]["id"]].append(event["data"])
    return by_frame


EVERY = 3
"""Which frames of a video the reference looks at too; the agent has worked on all of them."""


def frames_of(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Yield every third frame of a video with its number, or each picture of a folder by name."""
    if path.is_dir():
        yield from enumerate(cv2.imread(str(picture)) for picture in sorted(path.iterdir()))
        return
    capture = cv2.VideoCapture(str(path))
    for index in itertools.count():
        is_there, frame = capture.read()
        if not is_there:
            return
        if index % EVERY == 0:
            yield index, frame


def assert_same(found: list[dict[str, Any]], expected: list[reference.Box], labels: list[str], where: str) -> None:
    """Same count; each expected box has one of the same label with IoU ≥ 0.95 and |Δscore| ≤ 0.02."""
    assert len(found) == len(expected), f"{where}: {len(found)} found, {len(expected)} expected"
    rest = list(found)
    for box in expected:
        best = max(rest, key=lambda each: reference.iou(tuple(each["box"]), box.xyxy))
        rest.remove(best)
        assert best["label"] == labels[box.label], where
        assert reference.iou(tuple(best["box"]), box.xyxy) >= 0.95, f"{where}: {best['box']} is not {box.xyxy}"
        assert abs(best["score"] - box.score) <= 0.02, where


def build(holdfast: Holdfast, *arguments: str | Path) -> Path:
    """Build a bundle with the command line."""
    output = holdfast.folder / "built"
    done = holdfast.call("bundle", "build", *arguments, "--output", output)
    assert done.returncode == 0, done.stderr
    return output


def test_ultraface_on_the_pedestrian_video_gives_the_reference_detections(
    holdfast: Holdfast, mosquitto: Mosquitto, shared_data: Path
) -> None:
    """Every stage between a frame and the broker, held against forty lines of plain code."""
    model = shared_data / "models" / "ultraface-version-RFB-320.onnx"
    video = shared_data / "video" / "one-by-one-person-detection.mp4"
    bundle = build(holdfast, model, "--labels", "face", "--variants", "fp32")
    found = run_and_collect(holdfast, mosquitto, bundle, video)
    detect = reference.ultraface(model, threshold=0.7, nms=0.3)
    boxes = 0
    for index, frame in frames_of(video):
        expected = detect(frame)
        boxes += len(expected)
        assert_same(found.get(index, []), expected, ["face"], f"frame {index}")
    assert boxes > 20, "the reference found next to nothing: the comparison says nothing"


@pytest.mark.parametrize("source", ["video/vtest_small.avi", "images"])
def test_yolox_gives_the_reference_detections(
    holdfast: Holdfast, mosquitto: Mosquitto, shared_data: Path, source: str
) -> None:
    """A second family, with a letterbox and raw grid outputs, on a video and on photographs of other sizes."""
    model = shared_data / "models" / "yolox_nano_coco.onnx"
    bundle = build(holdfast, model, "--labels", "coco", "--variants", "fp32")
    found = run_and_collect(holdfast, mosquitto, bundle, shared_data / source)
    manifest = holdfast.manifest(bundle)
    decoder = manifest["decoder"]
    detect = reference.yolox(model, decoder["confidence_threshold"], decoder["iou_threshold"])
    boxes = 0
    for index, frame in frames_of(shared_data / source):
        expected = detect(frame)
        boxes += len(expected)
        assert_same(found.get(index, []), expected, decoder["labels"], f"frame {index}")
    assert boxes > 3
