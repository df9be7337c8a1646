"""The file that `holdfast init` writes, for devices that we do not have."""

from __future__ import annotations

from agent.cli.init import device_name, first_file
from agent.device.facts import Camera, Cpu, Facts
from agent.settings import Settings
from agent.yamlfile import parse, validate


def facts(*cameras: Camera, board: str = "") -> Facts:
    cpu = Cpu("x", "y", frozenset(), 2, 4)
    return Facts("linux", "6.1", "aarch64", board, cpu, 2**30, cameras=cameras)


def read(text: str) -> Settings:
    return validate(Settings, parse(text, "f"), "f")


def test_device_without_camera_runs_the_generated_scene():
    """So that the first run shows something."""
    settings = read(first_file(facts(board="Raspberry Pi 5 Model B Rev 1.0"), "line3.lan"))
    assert settings.device.name == "line3"
    assert settings.cameras["conveyor"].source.startswith("scene://")


def test_every_camera_found_is_in_the_file():
    """Whatever its name holds: quotes, colons, line breaks, hashes."""
    odd = Camera("/dev/video0", 'USB: "HD" #1\nx'), Camera(r"\\?\usb#vid", "b")
    settings = read(first_file(facts(*odd, board="evil\nboard: {"), "h"))
    assert [camera.source for camera in settings.cameras.values()] == ["/dev/video0", r"\\?\usb#vid"]
    assert settings.models["parcels"].bundle == "parcels"


def test_any_host_name_becomes_a_device_name():
    """Device names stand in topics."""
    assert [device_name(name) for name in ("box 1.lan", "", "ü", "a/b#c+d")] == ["box-1", "device", "device", "a-b-c-d"]
