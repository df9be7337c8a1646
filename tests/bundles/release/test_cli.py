"""`holdfast release`: what a person types and reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agent.errors import ConfigurationError, HoldfastError, OperatorError
from bundles.release.cli import app

RUNNER = CliRunner()


def run(*words: str | Path, code: int = 0, answer: str | None = None) -> str:
    """Return what is printed; the main program turns our errors into text, so here they come through."""
    result = RUNNER.invoke(app, [str(word) for word in words], input=answer)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    text = run("init", tmp_path / "repo", "--keys", tmp_path / "keys", "--online-keys", tmp_path / "online")
    assert f"put {tmp_path}/repo/metadata/1.root.json on each device" in text
    return tmp_path / "repo"


def test_the_operators_day(repo: Path, make_bundle, tmp_path: Path):
    """Publish for a quarter, for all, go back; each answer says what happened."""
    assert "added tiny 1" in run("add", repo, make_bundle("1"))
    run("publish", repo, "--channel", "stable", "--bundle", "tiny")
    run("add", repo, make_bundle("2"))
    text = run("publish", repo, "--channel", "stable", "--bundle", "tiny", "--percent", "25", "--groups", "lab,dock",
               "--window", "22:00-04:30", "--not-before", "2026-11-20T22:00:00+01:00")  # fmt: skip
    assert "release 2: tiny 2" in text and "25 % of groups lab, dock" in text and "devices see it now" in text
    assert "to 100 %" in run("promote", repo, "--channel", "stable")
    text = run("rollback", repo, "--channel", "stable", "--to", "1", "--reason", "false alarms")
    assert "back from 2: false alarms" in text
    text = run("show", repo)
    assert "channel stable, release 4" in text and "tiny 1, tiny 2" in text
    assert json.loads(run("show", repo, "--json"))["channels"][0]["release"] == 4
    assert "timestamp" in run("refresh", repo, "--online-keys", tmp_path / "online")
    assert run("refresh", repo, "--online-keys", tmp_path / "online", "--if-due") == ""
    assert "replaces" in run("rotate-key", repo, "targets")
    assert "whole" in run("verify", repo)
    assert "stable" in run("export", repo, tmp_path / "stick")
    assert json.loads(run("verify", tmp_path / "stick", "--channel", "stable", "--json")) == {
        "is_whole": True,
        "findings": [],
    }


def test_every_command_speaks_json(repo: Path, make_bundle, tmp_path: Path):
    """The same objects, for programs."""
    added = json.loads(run("add", repo, make_bundle("1"), "--json"))
    assert added["bundle"]["name"] == "tiny" and added["is_live"] is True
    published = json.loads(run("publish", repo, "--channel", "stable", "--bundle", "tiny", "--percent", "5", "--json"))
    assert published["channel"]["assignments"][0]["percent"] == 5
    for words in (("promote", "--channel", "stable", "--percent", "50"), ("refresh",), ("rotate-key", "snapshot"),
                  ("verify",), ("show",), ("export", tmp_path / "stick")):  # fmt: skip
        json.loads(run(words[0], repo, *words[1:], "--json"))
    made = json.loads(run("key", "new", tmp_path / "more.pem", "--json"))
    both = ["--key", made["private"]]
    changed = json.loads(run("change-keys", repo, "root", "--add", made["public"], "--threshold", "2", *both, "--json"))
    assert changed["waiting"] == [] and changed["written"][-1].startswith("root")
    json.loads(run("change-keys", repo, "root", "--remove", made["keyid"][:12], "--threshold", "1", "--key",
                   made["private"], "--json"))  # fmt: skip


def test_two_people_by_the_command_line(tmp_path: Path, make_bundle):
    """As docs/releases.md tells it; on one disk here, on two in test_cosigning.py."""
    for role in ("root", "targets"):
        run("key", "new", tmp_path / "bob" / f"{role}.pem")
    words = [f"--public-key={role}={tmp_path}/bob/{role}.pub" for role in ("root", "targets")]
    text = run("init", tmp_path / "repo", "--keys", tmp_path / "alice", "--threshold", "root=2", "--threshold",
               "targets=2", *words)  # fmt: skip
    assert "root 1 waits for 1 more signature" in text and "release sign" in text
    bob = ["--key", tmp_path / "bob" / "root.pem", "--key", tmp_path / "bob" / "targets.pem"]
    with pytest.raises(OperatorError, match="nothing was signed"):
        run("sign", tmp_path / "repo", *bob, answer="n\n")
    text = run("sign", tmp_path / "repo", *bob, answer="y\n")
    assert "root: needs 2 signatures" in text and "signed: root 1, targets 1" in text
    assert "waits for 1 more" in run("add", tmp_path / "repo", make_bundle("1"))
    assert "pending: bundles/tiny/1/manifest.json is new" in run("show", tmp_path / "repo")
    assert "devices see it now" in run("sign", tmp_path / "repo", *bob, "--yes")


def test_pipelines_file_changes_settings_and_typos_are_said(repo: Path, make_bundle, tmp_path: Path):
    """A device would ignore what it does not know; the person who wrote it is told."""
    run("add", repo, make_bundle("1"))
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("door:\n  min_score: 0.6\n  labels: [person]\n")
    bad.write_text("door:\n  min_scor: 0.6\nyard:\n  min_score: 7\n")
    text = run("publish", repo, "--channel", "stable", "--bundle", "tiny", "--set", good, "--json")
    assert json.loads(text)["channel"]["assignments"][0]["pipelines"] == {
        "door": {"min_score": 0.6, "labels": ["person"]}
    }
    with pytest.raises(ConfigurationError) as caught:
        run("publish", repo, "--channel", "stable", "--bundle", "tiny", "--set", bad)
    text = str(caught.value)
    assert "bad.yaml:2:3" in text and "did you mean `min_score`?" in text and "bad.yaml:4:3" in text
    bad.write_text("- a list\n")
    with pytest.raises(ConfigurationError):
        run("publish", repo, "--channel", "stable", "--bundle", "tiny", "--set", bad)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["init", "{repo}", "--keys", "{tmp}/keys"], "already"),
        (["init", "{tmp}/n", "--keys", "{tmp}/k", "--threshold", "targets"], "expected ROLE="),
        (["init", "{tmp}/n", "--keys", "{tmp}/k", "--threshold", "target=1"], "no role `target`"),
        (["init", "{tmp}/n", "--keys", "{tmp}/k", "--threshold", "targets=0"], "no number of signatures"),
        (["init", "{tmp}/n", "--keys", "{tmp}/k", "--expires", "timestamp=soon"], "no number of days"),
        (["init", "{tmp}/n", "--keys", "{tmp}/k", "--expires", "timestamp=-1"], "no number of days"),
        (["init", "{tmp}/n", "--keys", "{tmp}/k", "--public-key", "root={tmp}/no.pub"], "no such key"),
        (["add", "{repo}", "{tmp}"], "no manifest.json"),
        (["add", "{tmp}/nowhere", "{tmp}"], "no manifest.json"),
        (["publish", "{repo}", "--channel", "x", "--bundle", "y", "--not-before", "2026-01-01T00:00:00"], "time zone"),
        (["publish", "{repo}", "--channel", "x", "--bundle", "y", "--not-before", "soon"], "is no time"),
        (["publish", "{repo}", "--channel", "x", "--bundle", "y", "--key", "{tmp}/no.pem"], "no such key"),
        (["promote", "{repo}", "--channel", "x"], "no channel"),
        (["refresh", "{repo}", "--online-keys", "{tmp}/nowhere"], "no such folder of keys"),
        (["rotate-key", "{repo}", "mirror"], "no role `mirror`"),
        (["change-keys", "{repo}", "root"], "nothing would change"),
        (["sign", "{repo}"], "nothing waits"),
        (["show", "{tmp}"], "no release repository"),
        (["status", "--host", "h", "--user", "u", "--password-env", "NOT_SET_HERE"], "NOT_SET_HERE is not set"),
        (["status", "--host", "h", "--ca", "{tmp}/no.pem"], "no such file"),
        (["key", "import", "asw:x", "{tmp}/x.pub"], "no key service"),
    ],
)
def test_bad_wishes_end_in_an_error_with_a_next_step(repo: Path, tmp_path: Path, words: list[str], message: str):
    """What, where, what to do."""
    with pytest.raises(HoldfastError, match=message) as caught:
        run(*[word.format(repo=repo, tmp=tmp_path) for word in words])
    assert caught.value.hint


def test_channel_that_is_new_beside_others_is_said(repo: Path, make_bundle):
    """Nobody follows `stabel`."""
    run("add", repo, make_bundle("1"))
    assert "new channel" not in run("publish", repo, "--channel", "stable", "--bundle", "tiny")
    text = run("publish", repo, "--channel", "stabel", "--bundle", "tiny")
    assert "stabel is a new channel, beside stable" in text


def test_broker_that_is_away_is_said_with_this_commands_options():
    """There is no `mqtt.host` to correct on a laptop."""
    with pytest.raises(HoldfastError, match="nothing listens") as caught:
        run("status", "--host", "127.0.0.1", "--port", "1")
    assert "--host" in caught.value.hint and "mqtt." not in caught.value.hint


def test_verify_exits_with_1_on_damage(repo: Path):
    """For scripts."""
    (repo / "metadata" / "timestamp.json").write_text("{}")
    assert "error:" in run("verify", repo, code=1)


def test_broken_settings_are_said_with_line_and_key(repo: Path):
    """People may edit the file."""
    (repo / "repository.yaml").write_text("expires_days:\n  timestmp: 3\n")
    with pytest.raises(ConfigurationError, match="did you mean `timestamp`"):
        run("show", repo)
