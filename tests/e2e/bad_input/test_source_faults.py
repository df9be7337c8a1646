"""Files that are no video and cameras that refuse, hang and die: each is a condition, and the others go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from simulator.broker import Mosquitto
from simulator.consumer import Consumer
from simulator.link import FaultyLink
from simulator.rtsp import RtspServer
from tests.e2e.bad_input.conftest import PATIENCE_S, DeviceWatch, broker_at, sigterm

if TYPE_CHECKING:
    from tests.e2e.conftest import Holdfast

CONFIGURATION_ERROR = 3
RTSP = {"open_timeout_s": 4, "read_timeout_s": 2, "reconnect_first_s": 0.5, "reconnect_limit_s": 1}
PASSWORD = "not-the-right-one"


def write_video(path: Path, frames: int = 60) -> None:
    """A video of noise, so that its bytes cannot be guessed back."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (320, 240))
    generator = np.random.default_rng(1)
    for _ in range(frames):
        writer.write(generator.integers(0, 255, (240, 320, 3), np.uint8))
    writer.release()


def bad_files(folder: Path) -> dict[str, Path]:
    """Return files that are no whole video, by what is wrong with them."""
    whole = folder / "whole.mp4"
    write_video(whole)
    content = {
        "empty": b"",
        "cut": whole.read_bytes()[: whole.stat().st_size // 2],
        "text": b"This is a letter, and no video.\n" * 50,
    }
    for name, each in content.items():
        (folder / f"{name}.mp4").write_bytes(each)
    return {name: folder / f"{name}.mp4" for name in content}


def test_bad_files_and_cameras_are_conditions_and_the_good_camera_goes_on(
    planned: Holdfast,
    tmp_path: Path,
    mosquitto: Mosquitto,
    watch: Callable[[int], DeviceWatch],
    rtsp_server: Callable[..., RtspServer],
) -> None:
    """All in one worker, where each could hold up or take along the others."""
    files = bad_files(tmp_path)
    locked, plain = rtsp_server(user="viewer", password="secret"), rtsp_server()
    with FaultyLink("127.0.0.1", plain.port) as line, FaultyLink("127.0.0.1", plain.port) as hole:
        hole.partition()
        sources = {
            **{name: {"source": str(path)} for name, path in files.items()},
            "locked": {"source": f"rtsp://viewer:{PASSWORD}@127.0.0.1:{locked.port}/camera", **RTSP},
            "hole": {"source": f"rtsp://127.0.0.1:{hole.port}/camera", **RTSP},
            "stalls": {"source": f"rtsp://127.0.0.1:{line.port}/camera", **RTSP},
            "good": {"source": "scene://conveyor?fps=5"},
        }
        config = planned.write_config(
            mqtt=broker_at(mosquitto.port), models={"m": {"bundle": "parcels"}}, cameras=sources
        )
        device = watch(mosquitto.port)
        with Consumer(mosquitto.port) as consumer:
            device.agent = core = planned.run(config)
            texts = {name: device.wait_for_condition(f"source-down/{name}") for name in (*files, "locked", "hole")}
            device.wait_for(lambda _: line.passed_bytes["down"] > 100_000, "the camera plays")
            line.set("down", stalled=True)
            device.wait_for_condition("source-down/stalls")
            line.heal()
            device.wait_for(lambda it: "source-down/stalls" not in it.conditions, "the stalled camera is back")
            so_far = len(consumer.account.ids)
            assert consumer.wait_for(so_far + 3, PATIENCE_S), planned.log()
            sigterm(core).assert_clean(planned.log())
    assert all(str(path) in texts[name] for name, path in files.items()), texts
    assert "password" in texts["locked"], texts
    assert PASSWORD not in planned.log() + str(device.history)
    assert "worker-down/m" not in device.history, device.history

    checked = planned.call("doctor", "--config", config)
    assert checked.returncode == 1
    failed = {line.split()[2].rstrip(":") for line in checked.stdout.splitlines() if line.startswith("FAIL  camera")}
    assert failed == {*files, "locked", "hole", "stalls"}, checked.stdout + checked.stderr
    assert PASSWORD not in checked.stdout + checked.stderr
    assert "Traceback" not in checked.stdout + checked.stderr


def test_everything_wrong_in_a_configuration_is_said_at_once(holdfast: Holdfast, tmp_path: Path) -> None:
    """By the check, by doctor, and by a run that does not begin: with line, key, and the nearest word that is right."""
    config = tmp_path / "holdfast.yaml"
    config.write_text(
        "mqtt: {hots: broker, port: 99999}\n"
        "outbox: {when_full: explode}\n"
        "models:\n  m: {bundle: nowhere}\n"
        "cameras:\n  door: {source: usb:0, model: m, ruels: {}}\n  gate: {source: usb:1, model: n}\n"
    )
    wrong = (
        "mqtt.hots",
        "mqtt.port",
        "outbox.when_full",
        "models.m.bundle",
        "cameras.gate.model",
        "cameras.door.ruels",
    )
    for command in (("config", "check", config), ("run", "--config", config), ("doctor", "--config", config)):
        done = holdfast.call(*command)
        assert done.returncode == (1 if command[0] == "doctor" else CONFIGURATION_ERROR), done.stderr
        text = done.stdout + done.stderr
        assert all(key in text for key in wrong), (command, text)
        assert f"{config}:1:8" in text and "did you mean `host`?" in text, text
        assert "Traceback" not in text
