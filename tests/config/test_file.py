"""The operator's file: everything wrong is said at once, with its place; nothing secret is ever shown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.config import file as configfile
from agent.config import view
from agent.config.file import Configuration
from agent.errors import ConfigurationError, Problem

MINIMAL = """\
version: 1
device: {name: line3-box1}
mqtt: {host: broker.lan, user: edge, password: "${MQTT_PW}"}
models:
  people: {bundle: ./yolo11n.bundle}
cameras:
  door: {source: "rtsp://u:${CAM_PW}@10.0.0.5/sub", model: people}
"""
SECRETS = {"MQTT_PW": "hunter2", "CAM_PW": "s3cret!"}
Read = Callable[..., Configuration]
Refused = Callable[..., tuple[Problem, ...]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    for name in ("yolo11n.bundle", "other.bundle"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text("{}")
    return tmp_path / "holdfast.yaml"


@pytest.fixture
def read(file: Path) -> Read:
    def do(text: str, environment=None) -> Configuration:
        file.write_text(textwrap.dedent(text))
        return configfile.read(file, SECRETS if environment is None else environment)

    return do


@pytest.fixture
def refused(read: Read, file: Path) -> Refused:
    def do(text: str, environment=None) -> tuple[Problem, ...]:
        with pytest.raises(ConfigurationError) as caught:
            read(text, environment)
        return tuple(
            Problem(p.where.replace(str(file), "FILE"), p.key, p.message, p.hint) for p in caught.value.problems
        )

    return do


def one(problems: tuple[Problem, ...]) -> Problem:
    assert len(problems) == 1, problems
    return problems[0]


def test_twelve_lines_are_enough_for_a_camera_and_a_broker(read, tmp_path):
    """The promise: no model key typed."""
    assert len(MINIMAL.strip().splitlines()) <= 12
    settings = read(MINIMAL).settings
    assert settings.mqtt.password.get_secret_value() == "hunter2"
    assert settings.cameras["door"].source == "rtsp://u:s3cret!@10.0.0.5/sub"
    assert settings.models["people"].bundle == str(tmp_path / "yolo11n.bundle")


def test_every_problem_is_listed_with_line_and_nearest_key(refused):
    """One run, one list: nobody wants to find ten errors in ten runs."""
    problems = refused("""\
        version: 1
        mqtt: {host: b, keepalive: 5}
        camera: {}
        cameras:
          door: {source: "usb:0", fpss: 5}
        """)
    assert [(p.where, p.key) for p in problems] == [
        ("FILE:2:17", "mqtt.keepalive"), ("FILE:5:27", "cameras.door.fpss"), ("FILE:3:1", "camera"),
    ]  # fmt: skip
    assert [p.hint for p in problems] == [
        "did you mean `keepalive_s`?",
        "did you mean `fps`?",
        "did you mean `cameras`?",
    ]


def test_missing_variables_are_all_named_with_their_line(refused):
    """A service started without its environment file."""
    problems = refused(MINIMAL, {})
    assert [(p.where, p.key) for p in problems] == [
        ("FILE:3:38", "mqtt.password"), ("FILE:7:10", "cameras.door.source"),
    ]  # fmt: skip
    assert "MQTT_PW is not set" in problems[0].message


def test_variable_may_have_a_default_and_may_be_escaped(read):
    """`${X:-y}` as in a shell, and a way to write a literal `${`."""
    text = MINIMAL.replace("user: edge", 'user: "${WHO:-me}-$${x}-$5"')
    assert read(text).settings.mqtt.user == "me-${x}-$5"


def test_override_wins_keeps_its_origin_and_its_type(read):
    """`HOLDFAST__…` beats the file, also where the file's own variable is missing."""
    environment = {
        "HOLDFAST__MQTT__HOST": "other.lan",
        "HOLDFAST__MQTT__PORT": "1999",
        "HOLDFAST__MQTT__PASSWORD": "12345",
        "HOLDFAST__CAMERAS__DOOR__LABELS": "[person, car]",
        "HOLDFAST__CAMERAS__DOOR__REPEAT": "true",
        "CAM_PW": "x",
    }
    configuration = read(MINIMAL, environment)
    mqtt = configuration.settings.mqtt
    assert (mqtt.host, mqtt.port, mqtt.password.get_secret_value()) == ("other.lan", 1999, "12345")
    assert configuration.settings.cameras["door"].labels == ("person", "car")
    assert configuration.settings.cameras["door"].repeat is True
    origins = {value.key: value.origin for value in view.effective(configuration)}
    assert origins["mqtt.host"] == "HOLDFAST__MQTT__HOST"
    assert origins["mqtt.user"].endswith("holdfast.yaml:3:26")
    assert origins["mqtt.keepalive_s"] == "default"


def test_wrong_override_is_reported_under_its_own_name(refused):
    """Pointing at a line of the file would send the operator the wrong way."""
    assert one(refused(MINIMAL, SECRETS | {"HOLDFAST__MQTT__PORT": "no"})).where == "HOLDFAST__MQTT__PORT"
    problem = one(refused(MINIMAL, SECRETS | {"HOLDFAST__MQTT__HOTS": "x"}))
    assert (problem.where, problem.hint) == ("HOLDFAST__MQTT__HOTS", "did you mean `host`?")
    assert "single value" in one(refused(MINIMAL, SECRETS | {"HOLDFAST__MQTT__HOST__X": "y"})).message


def test_text_of_an_override_is_taken_as_it_is(read):
    """A password may hold `${`; it was expanded by whoever set the variable."""
    configuration = read(MINIMAL, SECRETS | {"HOLDFAST__MQTT__PASSWORD": "a${NOPE}b"})
    assert configuration.settings.mqtt.password.get_secret_value() == "a${NOPE}b"


def test_override_finds_names_with_capitals_and_dashes(read):
    """A shell cannot write `Front-Door`."""
    text = MINIMAL.replace("door:", "Front-Door:")
    configuration = read(text, SECRETS | {"HOLDFAST__CAMERAS__FRONT_DOOR__FPS": "3"})
    assert configuration.settings.cameras["Front-Door"].fps == 3


def test_no_secret_is_ever_shown(read):
    """Whatever way it came in: secret field, URL, query, variable."""
    text = (
        MINIMAL.replace("/sub", "/sub?token=abc&x=1")
        + "  side: {source: 'rtsp://a:inline@h/${API_TOKEN}', model: people}\n"
    )
    configuration = read(text, SECRETS | {"API_TOKEN": "tok-77"})
    shown = str([value.to_json() for value in view.effective(configuration)])
    for secret in ("hunter2", "s3cret!", "abc", "inline", "tok-77"):
        assert secret not in shown
    assert "rtsp://u:***@10.0.0.5/sub?token=***&x=1" in shown


def test_problem_with_a_secret_does_not_show_it(refused):
    """The error goes to a log that many can read."""
    problems = refused(MINIMAL, SECRETS | {"HOLDFAST__MQTT__PASSWORD": "[hunter9]"})
    assert "hunter9" not in str(problems)


def test_paths_are_relative_to_the_file_and_addresses_are_left_alone(read, tmp_path):
    """A service has another working folder."""
    text = """\
        state_dir: state
        device: {runtimes: [ "folder:ov", "virtual:board.yaml", "plugin:lib/libep.so", "virtual:intel-laptop" ]}
        models: {m: {bundle: other.bundle}}
        cameras:
          a: {source: clips/x.mp4}
          b: {source: "usb:0"}
          c: {source: "scene://conveyor?seed=1"}
        """
    settings = read(text).settings
    assert settings.state_dir == tmp_path / "state"
    assert settings.device.runtimes == (
        f"folder:{tmp_path}/ov",
        f"virtual:{tmp_path}/board.yaml",
        f"plugin:{tmp_path}/lib/libep.so",
        "virtual:intel-laptop",
    )
    assert settings.models["m"].bundle == str(tmp_path / "other.bundle")
    sources = [camera.source for camera in settings.cameras.values()]
    assert sources == [str(tmp_path / "clips/x.mp4"), "usb:0", "scene://conveyor?seed=1"]


CROSS = """\
    models: {a: {bundle: other.bundle}, b: {bundle: yolo11n.bundle}}
    cameras:
      door:
        source: "usb:0"
        model: a
        zones: {yard: {coordinates: [[0, 0], [1, 0], [1, 1]]}}
        rules: {r: {when: enter, zone: yard}}
      side: {source: "usb:1", model: b}
    """


@pytest.mark.parametrize(
    ("old", "new", "key", "text"),
    [
        pytest.param("model: b", "model: c", "cameras.side.model", "no model 'c'", id="unknown-model"),
        pytest.param(", model: b", "", "cameras.side.model", "several models", id="which-model"),
        pytest.param("zone: yard", "zone: yrd", "cameras.door.rules.r.zone", "no zone 'yrd'", id="unknown-zone"),
        pytest.param("other.bundle", "nope.bundle", "models.a.bundle", "no bundle", id="no-bundle"),
        pytest.param("other.bundle", "'.'", "models.a.bundle", "no built bundle", id="not-built"),
        pytest.param("[1, 1]", "[0.5, 0]", "cameras.door.zones.yard.coordinates", "no area", id="flat-zone"),
        pytest.param("[1, 1]", "[1, 200]", "cameras.door.zones.yard.coordinates[2][1]", "less than", id="pixels"),
    ],
)  # fmt: skip
def test_keys_that_do_not_agree_are_found(refused, old, new, key, text):
    """Each would otherwise be silence at three in the morning."""
    problem = one(refused(CROSS.replace(old, new, 1)))
    assert problem.key == key
    assert text in problem.message
    assert problem.where.startswith("FILE:")


def test_file_without_camera_and_sensor_is_refused(refused):
    """A typo in `cameras:` must not become an agent that does nothing."""
    assert "nothing to do" in one(refused("version: 1\n")).message


def test_missing_folder_of_profiles_is_refused(refused, tmp_path):
    """An empty glob would be silent, and the device would be run with a profile that nobody meant."""
    text = MINIMAL.replace("line3-box1", "line3-box1, profiles: mine")
    assert one(refused(text)).message == f"there is no folder {tmp_path / 'mine'}"


def test_certificate_without_key_is_refused(refused, tmp_path):
    """TLS would fail at the first connection, with a far worse message."""
    (tmp_path / "c.pem").write_text("x")
    assert "needs `key`" in one(refused(MINIMAL.replace("user: edge", "tls: {cert: c.pem}"))).message
    assert "there is no file" in one(refused(MINIMAL.replace("user: edge", "tls: {ca: ca.pem}"))).message


def test_camera_and_sensor_of_one_name_are_refused(refused):
    """Their events would mix on one topic."""
    text = MINIMAL + 'sensors:\n  door: {source: "signal://bearing"}\n'
    assert "same topic" in one(refused(text)).message


def test_sensor_takes_only_rules_that_need_no_picture(refused):
    """`enter` for a vibration sensor would be silence."""
    text = MINIMAL + 'sensors:\n  s: {source: "signal://x", rules: {r: {when: enter}}}\n'
    assert "'level'" in one(refused(text)).message


def test_what_works_but_is_odd_is_a_warning(read):
    """A file on a stick may come later; an unused model costs nothing."""
    text = MINIMAL + "  side: {source: gone.mp4, model: people}\n"
    text = text.replace("models:\n", "models:\n  idle: {bundle: other.bundle}\n")
    assert [warning.key for warning in read(text).warnings] == ["cameras.side.source", "models.idle"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"# only a comment\n", "empty", id="comment"),
        pytest.param(b"version: 1\nname: caf\xe9\n", "UTF-8", id="latin-1"),
        pytest.param(b"\x00\x01\x02", "not valid YAML", id="binary"),
        pytest.param(b"cameras:\n\tdoor: {}\n", "spaces", id="tab"),
        pytest.param(b"version: 1\nversion: 1\n", "twice", id="duplicate"),
        pytest.param(b"- a\n- b\n", "mapping", id="list"),
        pytest.param(b"mqtt: {host: h, password: ${PW}}\n", "quote the variable", id="variable-in-flow"),
    ],
)
def test_file_that_is_no_configuration_gives_one_clear_problem(file, content, text):
    """Never a traceback."""
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=text) as caught:
        configfile.read(file, {})
    assert len(caught.value.problems) == 1


def test_folder_and_missing_file_are_said(tmp_path):
    """The path is wrong: say which."""
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ConfigurationError, match="cannot be read"):
            configfile.read(path, {})


def test_first_file_of_the_search_path_is_taken(tmp_path, monkeypatch, read):
    """And where there is none, the operator hears where it was looked for."""
    read(MINIMAL)
    monkeypatch.chdir(tmp_path)
    assert configfile.read(None, SECRETS).file == Path("holdfast.yaml")
    (tmp_path / "holdfast.yaml").unlink()
    monkeypatch.setattr(configfile, "search_path", lambda: [Path("holdfast.yaml"), tmp_path / "b.yaml"])
    with pytest.raises(ConfigurationError, match="holdfast init"):
        configfile.read(None, {})


def test_broker_alone_is_enough_for_commands_that_only_listen(read, file):
    """`events tail` on a laptop has no bundle."""
    file.write_text("mqtt: {host: b}\nmodels: {m: {bundle: ./elsewhere}}\n")
    assert configfile.read(file, {}, for_run=False).settings.mqtt.host == "b"


def test_what_does_not_agree_is_listed_beside_what_is_invalid(tmp_path):
    """A person who mends one list of problems must not be met by the next."""
    file = tmp_path / "holdfast.yaml"
    file.write_text(
        "mqtt: {hots: broker, tls: {cert: /nowhere.pem}}\n"
        "outbox: {when_full: explode}\n"
        "models: {m: {bundle: nowhere}}\n"
        "cameras:\n"
        "  door: {source: usb:0, model: n, ruels: {}}\n"
        "  gate: {source: usb:1, model: n, fps: fast}\n"
        "  yard: {source: usb:2, model: n}\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        configfile.read(file, {})
    assert [problem.key for problem in caught.value.problems] == [
        "mqtt.host", "mqtt.hots", "outbox.when_full", "cameras.door.ruels", "cameras.gate.fps",
        "models.m.bundle", "cameras.yard.model",
    ]  # fmt: skip


def test_nothing_is_said_that_only_follows_from_another_problem(tmp_path):
    """A camera that cannot be read is not "no camera", and a model with a bad key is not "no such model"."""
    file = tmp_path / "holdfast.yaml"
    file.write_text(
        "models: {m: {bundle: 3}, n: {bundle: parcels}}\n"
        "cameras: {door: {source: usb:0, model: m, fps: -1}, gate: {source: usb:1, model: m}}\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        configfile.read(file, {})
    assert sorted(problem.key for problem in caught.value.problems) == ["cameras.door.fps", "models.m.bundle"]
