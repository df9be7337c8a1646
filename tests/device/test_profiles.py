"""The shipped profiles, and the rules that choose among profiles."""

from __future__ import annotations

import pytest

from agent import resources
from agent.device.profile import CandidateSpec, Match, Profile
from agent.device.profiles import check, load_profiles, select
from agent.errors import ConfigurationError, OperatorError

EXPECTED = {
    "epyc-zen4": "x86-64-avx512-vnni",
    "i5-haswell": "x86-64-avx2",
    "atom-x86": "x86-64-older",
    "graviton3": "aarch64-i8mm",
    "rk3588": "aarch64-dotprod",
    "cortex-a53": "aarch64-plain",
    "raspberry-pi-4": "raspberry-pi-4",
    "raspberry-pi-5": "raspberry-pi-5",
    "riscv": "safe-default",
}
CPU = CandidateSpec(provider="CPUExecutionProvider", variants=("fp32",))


@pytest.fixture(scope="module")
def shipped():
    return load_profiles([resources.device_profiles()])


def profile(name: str, **conditions: object) -> Profile:
    return Profile(name=name, description="", match=Match(**conditions), candidates=(CPU,))


@pytest.mark.parametrize(("device", "name"), EXPECTED.items(), ids=EXPECTED)
def test_each_device_gets_its_profile(shipped, device_facts, device, name):
    """A wrong profile costs speed on every frame, for years."""
    assert select(device_facts(device), shipped).profile.name == name


def test_every_shipped_profile_is_selected_by_some_device(shipped):
    """A profile that nothing selects is dead weight, or a typo."""
    assert {each.name for each in shipped} == set(EXPECTED.values())


def test_no_tie_and_no_shadow_among_shipped_profiles(shipped):
    """Two profiles that match a device equally well would stop it from starting."""
    assert check(shipped) == []


def test_every_shipped_file_says_where_its_settings_come_from():
    """A number without a reason cannot be corrected by who comes later."""
    for path in resources.device_profiles().glob("*.yaml"):
        assert path.read_text().startswith("# "), path


def test_every_verdict_has_a_reason(shipped, device_facts):
    """`holdfast profile explain` must answer why not the other one."""
    verdicts = {each.profile: each for each in select(device_facts("raspberry-pi-5"), shipped).verdicts}

    assert verdicts["raspberry-pi-5"].text == "selected: the most specific match"
    assert verdicts["aarch64-dotprod"].text == "matches, but raspberry-pi-5 says more"
    assert verdicts["aarch64-i8mm"].text == "CPU lacks i8mm"
    assert verdicts["raspberry-pi-4"].text == "board is Raspberry Pi 5 Model B Rev 1.0, not Raspberry Pi 4"
    assert verdicts["x86-64-avx2"].text == "architecture is aarch64, not x86_64"


def test_an_operator_may_name_a_profile(shipped, device_facts):
    """Whoever knows better than the match is believed."""
    selection = select(device_facts("raspberry-pi-5"), shipped, "safe-default")

    assert selection.profile.name == "safe-default"
    with pytest.raises(OperatorError, match="did you mean `raspberry-pi-4`"):
        select(device_facts("raspberry-pi-5"), shipped, "rasberry-pi-4")


def test_a_tie_on_a_device_is_an_error_with_both_names(device_facts):
    """Choosing by file name would be choosing in silence."""
    profiles = [profile("a", os="linux"), profile("b", os="linux")]

    with pytest.raises(OperatorError, match="a, b"):
        select(device_facts("riscv"), profiles)


def test_no_match_says_what_to_do(device_facts):
    """Only reachable without the safe default, in an operator's own folder."""
    with pytest.raises(OperatorError, match="no device profile matches"):
        select(device_facts("riscv"), [profile("a", os="windows")])


@pytest.mark.parametrize(
    ("first", "second", "count"),
    [
        pytest.param({"os": "linux"}, {"os": "linux"}, 1, id="same"),
        pytest.param({"cpu_features": ["avx2"]}, {"cpu_features": ["fma"]}, 1, id="different-features"),
        pytest.param({"cpu_features": ["avx2"]}, {"cpu_features": ["dotprod"]}, 0, id="other-architecture"),
        pytest.param({"cpu_features": ["avx2"]}, {"cpu_features": ["fma", "avx"]}, 0, id="one-says-more"),
        pytest.param({"board": "Raspberry Pi 4"}, {"board": "Raspberry Pi 5"}, 0, id="other-board"),
        pytest.param({"board": "raspberry pi"}, {"board": "Raspberry Pi 5"}, 1, id="board-inside-board"),
        pytest.param({"cpu_vendor": "Intel"}, {"cpu_vendor": "AMD"}, 0, id="other-vendor"),
    ],
)
def test_check_finds_every_pair_that_could_tie(first, second, count):
    """Found here, not on the first device that has both."""
    assert len(check([profile("a", **first), profile("b", **second)])) == count


def test_check_finds_a_profile_that_is_never_selected():
    """AVX-512 brings AVX2 and FMA with it, so whoever has it also matches the one that asks for both."""
    profiles = [
        profile("wide", cpu_features=["avx512f"]),
        profile("narrow", cpu_features=["avx2", "fma"]),
        profile("every-arm", architecture="aarch64"),
        profile("neon", architecture="aarch64", cpu_features=["neon"]),
    ]

    assert [(problem.where, problem.message.split(": ")[0]) for problem in check(profiles)] == [
        ("wide", "is never selected"),
        ("every-arm", "is never selected"),
    ]


GOOD = "name: mine\ndescription: d\ncandidates:\n  - provider: CPUExecutionProvider\n    variants: [fp32]\n"


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        pytest.param(GOOD + "macth: {}\n", "mine.yaml:6:1", "unknown key", id="unknown-key"),
        pytest.param(GOOD.replace("mine", "yours"), "mine.yaml:1:1", "the file is called `mine`", id="name"),
        pytest.param(GOOD + "match: {cpu_features: [avx512-vnni]}\n", "mine.yaml:6:9", "unknown feature", id="feature"),
        pytest.param(GOOD + "match: {architecture: x86_64, cpu_features: [neon]}\n", "mine.yaml:6:1", "can never match",
                     id="impossible"),
        pytest.param(GOOD.replace("[fp32]", "[]"), "mine.yaml:5:5", "is empty", id="no-variants"),
        pytest.param(GOOD + "    threads: [0]\n", "mine.yaml:6:5", "at least 1", id="threads"),
        pytest.param(GOOD.replace("CPUExecutionProvider", "CPU"), "mine.yaml:4:5", "pattern", id="provider"),
        pytest.param("[]", "mine.yaml:1:1", "mapping", id="list"),
    ],
)  # fmt: skip
def test_a_bad_profile_is_refused_with_its_line(tmp_path, text, where, message):
    """An operator's own profile must fail with a place to look, before any device runs it."""
    (tmp_path / "mine.yaml").write_text(text)

    with pytest.raises(ConfigurationError) as caught:
        load_profiles([tmp_path])

    assert any(problem.where.endswith(where) and message in problem.message for problem in caught.value.problems), str(
        caught.value
    )


def test_all_problems_of_all_files_are_listed(tmp_path):
    """One at a time would be one restart at a time."""
    (tmp_path / "a.yaml").write_text("name: a\n")
    (tmp_path / "b.yaml").write_text("name: b\ndescription: d\ncandidates: 3\n")

    with pytest.raises(ConfigurationError) as caught:
        load_profiles([tmp_path])

    assert {problem.where.split("/")[-1].split(":")[0] for problem in caught.value.problems} == {"a.yaml", "b.yaml"}
    assert len(caught.value.problems) == 3


def test_a_later_folder_replaces_a_profile_by_name(tmp_path, shipped):
    """How an operator corrects a shipped profile without touching the installation."""
    (tmp_path / "safe-default.yaml").write_text(GOOD.replace("mine", "safe-default"))

    profiles = load_profiles([resources.device_profiles(), tmp_path])

    assert len(profiles) == len(shipped)
    assert next(each for each in profiles if each.name == "safe-default").description == "d"
