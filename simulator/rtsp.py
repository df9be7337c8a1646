"""A real RTSP server (GStreamer's) in a process of its own, with a camera's faults: it stops, freezes, wants a login.

Takes a video file or nothing (then a moving test pattern), gives a URL, and never uses a fixed port. gst-rtsp-server
is reached through the system's Python, because `gi` lives there and not in a virtual environment. Refuses to start
where it is not installed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from agent.errors import UnavailableError

SYSTEM_PYTHON = "/usr/bin/python3"

_SERVER = """
import json, sys
import gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
options = json.loads(sys.argv[1])
Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_address("127.0.0.1"); server.set_service(str(options["port"]))
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(options["launch"]); factory.set_shared(True)
if options["user"]:
    auth = GstRtspServer.RTSPAuth(); token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(options["user"], options["password"]), token)
    server.set_auth(auth)
    role = Gst.Structure.new_empty("viewer")
    for right in ("media.factory.access", "media.factory.construct"):
        role.set_value(right, True)
    factory.add_role_from_structure(role)
server.get_mount_points().add_factory("/camera", factory)
if not server.attach(None):
    sys.exit("the port cannot be bound")
print(server.get_bound_port(), flush=True)
# The parent holds our stdin: when it is gone, so are we.
GLib.io_add_watch(sys.stdin, GLib.PRIORITY_DEFAULT, GLib.IO_HUP, lambda *_: sys.exit(0))
GLib.MainLoop().run()
"""


def is_available() -> bool:
    """Whether gst-rtsp-server and its Python binding are installed on this machine."""
    if not shutil.which(SYSTEM_PYTHON):
        return False
    probe = "import gi; gi.require_version('GstRtspServer', '1.0')"
    return subprocess.run([SYSTEM_PYTHON, "-c", probe], capture_output=True, check=False).returncode == 0


class RtspServer:
    """A running server. `stop` kills it as a power cut would, `start` brings it back on the same port.

    Args:
        video: An H.264 file in an MP4 container, played in real time; a 640×360 test pattern where none is given.
        fps: Frames per second of the test pattern.
        user: Ask for this user by HTTP basic authentication.
        password: Its password.
    """

    def __init__(
        self, video: Path | None = None, *, fps: int = 15, user: str | None = None, password: str | None = None
    ) -> None:
        self._launch = _file_launch(video) if video else _pattern_launch(fps)
        self._user = user
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """The stream's URL, with the login where there is one."""
        login = f"{self._user}:{self._password}@" if self._user else ""
        return f"rtsp://{login}127.0.0.1:{self.port}/camera"

    def start(self) -> None:
        """Start, or start again on the port of the first time.

        Raises:
            UnavailableError: the server did not come up, with its last words.
        """
        options = {"port": self.port, "launch": self._launch, "user": self._user, "password": self._password}
        command = [SYSTEM_PYTHON, "-c", _SERVER, json.dumps(options)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.strip():
            assert self._process.stderr is not None
            words = self._process.stderr.read().decode(errors="replace")
            raise UnavailableError(f"the RTSP server did not start: {words[-500:]}")
        self.port = int(line)

    def stop(self) -> None:
        """End it at once; connections break."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._process = None

    def pause(self) -> None:
        """Freeze it: connections stay open and nothing more comes, as with a hung camera."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None, "the server does not run"
        os.kill(self._process.pid, number)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def _pattern_launch(fps: int) -> str:
    return (
        f"( videotestsrc is-live=true pattern=ball ! video/x-raw,width=640,height=360,framerate={fps}/1 "
        f"! x264enc tune=zerolatency speed-preset=ultrafast key-int-max={fps} "
        "! rtph264pay name=pay0 pt=96 config-interval=1 )"
    )


def _file_launch(video: Path) -> str:
    return f'( filesrc location="{video}" ! qtdemux ! h264parse ! rtph264pay name=pay0 pt=96 config-interval=1 )'
