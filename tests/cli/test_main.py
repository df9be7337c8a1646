"""The command line as a whole: what it lists, what it loads, how it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from agent.cli.main import COMMANDS, FOREIGN_HELP, _report, build
from agent.errors import UnavailableError

REPOSITORY = Path(__file__).resolve().parent.parent.parent
HEAVY = ("onnxruntime", "cv2", "numpy", "paho", "pydantic", "yaml", "simulator", "bundles", "agent.device", "agent.app")


def holdfast(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST__")}
    return subprocess.run(
        [sys.executable, "-P", "-m", "agent", *arguments],
        cwd=cwd, text=True, capture_output=True, timeout=60, check=False,
        env={**clean, "PYTHONPATH": str(REPOSITORY), "STATE_DIRECTORY": str(cwd / "state"), **environment},
    )  # fmt: skip


@pytest.fixture
def good_file(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "manifest.json").write_text("{}")
    file = tmp_path / "holdfast.yaml"
    file.write_text(
        "mqtt: {host: h, user: u, password: '${PW}'}\nmodels: {m: {bundle: ./m}}\n"
        "cameras: {door: {source: 'rtsp://u:${CAM_PW}@h/s'}}\n"
    )
    return file


def test_help_lists_every_command_with_a_line(tmp_path):
    """What is not listed is not found."""
    shown = holdfast("--help", cwd=tmp_path, COLUMNS="120").stdout
    for name, (_, text) in COMMANDS.items():
        assert name in shown
        assert text.split(":")[0].split(",")[0] in shown


def test_help_loads_nothing_heavy(tmp_path):
    """A list of commands must be there at once, also on a slow board with a broken driver."""
    code = (
        "import sys\nfrom agent.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit: pass\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, text=True, capture_output=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("name", [*COMMANDS, *FOREIGN_HELP])
def test_every_option_has_a_help_that_the_terminal_shows(name):
    """Rich takes what stands in square brackets for markup: `[default: …]` was written for years and never seen."""
    command = typer.main.get_command(build(name))
    for each in _with_subcommands(command.commands[name]):
        assert each.help
        for option in each.params:
            text = getattr(option, "help", "-")  # an argument may go without
            assert option.name == "help" or text, f"{each.name} {option.name}"
            assert "[" not in (text or ""), f"{each.name} {option.name}: {text}"


def _with_subcommands(command):
    yield command
    for each in getattr(command, "commands", {}).values():
        yield from _with_subcommands(each)


def test_version_and_unknown_command(tmp_path):
    """Two things that scripts ask."""
    assert holdfast("--version", cwd=tmp_path).stdout.startswith("holdfast ")
    wrong = holdfast("confg", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "config" in wrong.stderr


def test_error_is_short_has_the_next_step_and_its_own_exit_code(tmp_path):
    """Not a traceback; that comes with -v."""
    done = holdfast("config", "check", "none.yaml", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("error: none.yaml: cannot be read")
    assert "→" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in holdfast("-v", "config", "check", "none.yaml", cwd=tmp_path).stderr


def test_reader_that_leaves_early_is_no_error_message(good_file):
    """`holdfast config schema | head -1`."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "agent", "config", "schema"],
        cwd=good_file.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    ) as child:  # fmt: skip
        child.stdout.close()
        assert child.stderr.read() == b""


def test_command_of_a_package_that_is_missing_says_what_to_install(tmp_path, monkeypatch):
    """The agent without its extras is complete; the demo is not part of it."""
    import importlib.metadata as metadata

    from agent.cli import main as module
    from agent.errors import OperatorError

    point = metadata.EntryPoint("demo", "no_such_package.demo:app", module.ENTRY_POINTS)
    monkeypatch.setattr(module.importlib.metadata, "entry_points", lambda group: [point])
    with pytest.raises(OperatorError, match="no_such_package"):
        module.build("demo")
    module.build(None)


def test_config_check_and_show_never_print_a_secret(good_file):
    """They are pasted into tickets."""
    secrets = {"PW": "hunter2", "CAM_PW": "s3cret!"}
    check = holdfast("config", "check", cwd=good_file.parent, **secrets)
    assert check.returncode == 0, check.stderr
    assert "ok (cameras: 1," in check.stdout
    table = holdfast("config", "show", cwd=good_file.parent, **secrets).stdout
    as_json = holdfast("config", "show", "--json", cwd=good_file.parent, **secrets).stdout
    values = {each["key"]: each for each in json.loads(as_json)}
    assert values["cameras.door.source"]["value"] == "rtsp://u:***@h/s"
    assert values["cameras.door.source"]["origin"] == "holdfast.yaml:3:18"
    for secret in secrets.values():
        assert secret not in table + as_json


def test_config_check_as_json_lists_problems(good_file):
    """For editors and fleet tools."""
    good_file.write_text("mqtt: {hots: x}\n")
    done = holdfast("config", "check", "--json", "-c", good_file.name, cwd=good_file.parent)
    assert done.returncode == 3
    report = json.loads(done.stdout)
    assert report["ok"] is False
    assert {problem["key"] for problem in report["problems"]} == {"mqtt.hots", "mqtt.host", "cameras"}


def test_init_writes_a_file_that_says_what_it_found_and_never_overwrites(tmp_path):
    """The first minute of a newcomer."""
    first = holdfast("init", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    text = (tmp_path / "holdfast.yaml").read_text()
    assert "scene://conveyor" in text or "camera0" in text
    (tmp_path / "holdfast.yaml").write_text("mine")
    second = holdfast("init", cwd=tmp_path)
    assert (second.returncode, (tmp_path / "holdfast.yaml").read_text()) == (3, "mine")
    assert "--force" in second.stderr
    assert holdfast("init", "--force", cwd=tmp_path).returncode == 0
    assert (tmp_path / "holdfast.yaml").read_text() == text


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8"])
def test_terminal_without_unicode_shows_what_it_can(good_file, encoding):
    """`LANG=C` on a small board, and a pipe on Windows: a command that has measured for minutes must not end in a traceback."""
    good_file.write_text(good_file.read_text().replace("@h/s'}", "@h/s', labels: ['a→b']}"))
    secrets = {"PW": "secret-1", "CAM_PW": "secret-2"}
    narrow = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = holdfast("config", "show", "--json", cwd=good_file.parent, LC_ALL="C", **narrow, **secrets)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert ("a→b" if encoding == "utf-8" else "a?b") in str(json.loads(shown.stdout))


def test_init_into_a_folder_that_is_not_there_is_said(tmp_path):
    """A clear text, not a traceback."""
    done = holdfast("init", "--output", "none/x.yaml", cwd=tmp_path)
    assert (done.returncode, "cannot be written" in done.stderr) == (7, True)


def test_error_that_quotes_a_hostile_server_is_only_text(capsys):
    """A status line, a reason, a signed document: somebody else wrote it."""
    _report(UnavailableError("the exchange failed: \x1b]0;gotcha\x07\rfine"), is_verbose=False)
    assert capsys.readouterr().err == "error: the exchange failed: \\x1b]0;gotcha\\x07\\rfine\n"
