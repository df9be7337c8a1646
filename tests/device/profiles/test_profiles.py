"""The shipped profiles, the rules that choose among profiles, and how they become one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import resources
from agent.device.facts import Accelerator, Cpu, EpDevice, Facts
from agent.device.hardware.features import ARCHITECTURE_OF
from agent.device.profiles.profile import CandidateSpec, Limits, Match, Profile, Tune
from agent.device.profiles.provideroptions import PROVIDERS
from agent.device.profiles.selection import check, load_profiles, select
from agent.errors import ConfigurationError, OperatorError

CPU = CandidateSpec(provider="CPUExecutionProvider", variants=("fp32",))
VINO, CUDA = "OpenVINOExecutionProvider", "CUDAExecutionProvider"
BOX = Facts(
    os="linux",
    os_version="6",
    architecture="x86_64",
    board="Acme Box 3",
    cpu=Cpu("Intel", "", frozenset({"avx", "avx2"}), physical_cores=4, logical_cores=4),
    memory_bytes=8 << 30,
    ep_devices=(EpDevice(VINO, "npu"), EpDevice(CUDA, "gpu"), EpDevice("CPUExecutionProvider", "cpu")),
)


@pytest.fixture(scope="module")
def shipped():
    return load_profiles([resources.device_profiles()])


def profile(name: str, **conditions: object) -> Profile:
    return Profile(name=name, description="", match=Match(**conditions), candidates=(CPU,))


def for_accelerator(name: str, provider: str, limits: Limits | None = None, **conditions: object) -> Profile:
    spec = CandidateSpec(provider=provider, device_type="npu", variants=("int8",))
    match, limits = Match(**conditions), limits or Limits()
    return Profile(name=name, description="", accelerator=provider, match=match, candidates=(spec,), limits=limits)


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


def test_accelerators_join_the_processors_profile_and_are_tried_first():
    """A box with CUDA and OpenVINO loses neither; the order is that of the table of providers."""
    profiles = [profile("any"), for_accelerator("vino", VINO), for_accelerator("cuda", CUDA)]

    chosen = select(BOX, profiles).profile

    assert chosen.name == "any+cuda+vino"
    assert [each.provider for each in chosen.candidates] == [CUDA, VINO, "CPUExecutionProvider"]


def test_the_most_specific_profile_of_each_accelerator_wins():
    """A Jetson's memory is not a desktop's."""
    profiles = [profile("any"), for_accelerator("vino", VINO), for_accelerator("vino-acme", VINO, board="acme box")]

    selection = select(BOX, profiles)

    assert selection.profile.name == "any+vino-acme"
    assert {each.profile: each.text for each in selection.verdicts} == {
        "any": "selected: the most specific match",
        "vino": "matches, but vino-acme says more",
        "vino-acme": f"selected: the most specific match for {VINO}",
    }


def test_two_equally_specific_profiles_of_one_accelerator_are_an_error():
    """As for processors: choosing by file name would be choosing in silence."""
    profiles = [profile("any"), for_accelerator("one", VINO), for_accelerator("two", VINO)]

    with pytest.raises(OperatorError, match="one, two"):
        select(BOX, profiles)
    assert len(check(profiles)) == 1
    assert check([profile("any"), for_accelerator("one", VINO), for_accelerator("two", CUDA)]) == []


def test_profiles_of_different_kinds_do_not_stand_in_each_others_way():
    """An accelerator's profile is selected beside a processor's, however much that says."""
    narrow, wide = {"cpu_features": ["avx2", "fma"]}, {"cpu_features": ["avx512f"]}

    assert check([profile("any", **narrow), for_accelerator("vino", VINO, **wide)]) == []
    assert len(check([for_accelerator("narrow", VINO, **narrow), for_accelerator("wide", VINO, **wide)])) == 1


def test_each_part_keeps_its_own_limits_of_memory_and_time():
    """TensorRT's half hour is not the CPU's, and its gigabytes are not either."""
    slow = for_accelerator("vino", VINO, Limits(memory_mb=8192, trial_s=90, compile_s=1800))
    processor = profile("any").model_copy(update={"limits": Limits(memory_mb=512), "tune": Tune(budget_s=7)})

    chosen = select(BOX, [processor, slow]).profile

    assert chosen.limits_for(VINO) == slow.limits
    assert chosen.limits_for("CPUExecutionProvider") == chosen.limits == processor.limits
    assert chosen.tune.budget_s == 7


@pytest.mark.parametrize(
    ("own", "device", "holds"),
    [
        pytest.param(None, 80.0, 80.0, id="the-devices"),
        pytest.param(70.0, None, 70.0, id="its-own"),
        pytest.param(90.0, 80.0, 80.0, id="the-tighter"),
        pytest.param(None, None, None, id="none"),
    ],
)
def test_latency_and_heat_are_promises_of_the_whole_device(own, device, holds):
    """A box that must stay below 80 °C must do so whoever computes."""
    hot = for_accelerator("vino", VINO, Limits(celsius=own, p99_ms=own))
    processor = profile("any").model_copy(update={"limits": Limits(celsius=device, p99_ms=device)})

    limits = select(BOX, [processor, hot]).profile.limits_for(VINO)

    assert (limits.celsius, limits.p99_ms) == (holds, holds)


def test_named_parts_are_used_exactly_as_named():
    """Whoever knows better is believed, also in what he leaves out."""
    profiles = [
        profile("any"),
        profile("linux", os="linux"),
        for_accelerator("vino", VINO),
        for_accelerator("cuda", CUDA),
    ]

    assert select(BOX, profiles, "any").profile.name == "any"
    assert select(BOX, profiles, "any+vino").profile.name == "any+vino"
    assert select(BOX, profiles, "vino").profile.name == "linux+vino"
    verdicts = {each.profile: each.text for each in select(BOX, profiles, "any+vino").verdicts}
    assert verdicts["vino"] == "selected: named in the configuration"
    assert verdicts["cuda"] == "matches, but any+vino was named"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("any+linux", "any and linux are each for a processor", id="two-processors"),
        pytest.param("vino+vino2", f"vino and vino2 are both for {VINO}", id="two-for-one-provider"),
        pytest.param("any+vin", "no device profile `vin`", id="unknown-part"),
        pytest.param("any+", "no device profile ``", id="empty-part"),
    ],
)
def test_a_name_that_cannot_be_composed_is_refused(name, message):
    """Nothing that an operator writes may be taken by half."""
    profiles = [
        profile("any"), profile("linux", os="linux"), for_accelerator("vino", VINO), for_accelerator("vino2", VINO),
    ]  # fmt: skip

    with pytest.raises(OperatorError, match=message):
        select(BOX, profiles, name)


def test_a_plugin_library_that_a_profile_names_is_opened_before_its_provider_is_here():
    """The provider can only be offered once its library is registered."""
    waiting = for_accelerator("mine", "MineExecutionProvider").model_copy(update={"runtimes": ("plugin:/opt/mine.so",)})
    elsewhere = for_accelerator("other", "OtherExecutionProvider", os="windows").model_copy(
        update={"runtimes": ("plugin:other.dll",)}
    )

    selection = select(BOX, [profile("any"), waiting, elsewhere])

    assert selection.profile.name == "any"
    assert selection.profile.runtimes == ("plugin:/opt/mine.so",)


def for_any() -> Profile:
    spec = CandidateSpec(provider="any", device_type="npu", variants=("int8",))
    return Profile(name="rest", description="", accelerator="any", candidates=(spec,), limits=Limits(compile_s=99))


def test_providers_that_no_profile_is_for_are_tried_last_with_their_defaults():
    """A vendor's new plugin is found, tried and measured the day it is installed."""
    more = [EpDevice("MineExecutionProvider", "npu"), EpDevice("YoursExecutionProvider", "npu")]
    facts = replace(BOX, ep_devices=(*BOX.ep_devices, *more))
    profiles = [profile("any"), for_accelerator("vino", VINO), for_accelerator("cuda", CUDA), for_any()]

    selection = select(facts, profiles)

    assert selection.profile.name == "any+cuda+vino+rest"
    providers = [each.provider for each in selection.profile.candidates]
    assert providers == [CUDA, VINO, "MineExecutionProvider", "YoursExecutionProvider", "CPUExecutionProvider"]
    assert selection.profile.limits_for("YoursExecutionProvider").compile_s == 99
    assert "selected: the most specific match for what no other profile is for" in {
        each.text for each in selection.verdicts
    }


def test_a_provider_whose_own_profile_does_not_match_is_no_stranger():
    """Qualcomm's plugin on x86-64 would come back by the side door."""
    profiles = [profile("any"), for_accelerator("vino", VINO, os="windows"), for_accelerator("cuda", CUDA), for_any()]

    selection = select(BOX, profiles)

    assert selection.profile.name == "any+cuda"
    verdicts = {each.profile: each.text for each in selection.verdicts}
    assert verdicts["rest"] == "no provider is here that has no profile of its own"


def test_what_another_devices_processor_tries_does_not_count_here():
    """Only the processor's profile that was selected brings candidates."""
    spec = CandidateSpec(provider="MineExecutionProvider", device_type="npu", variants=("int8",))
    elsewhere = profile("elsewhere", board="other").model_copy(update={"candidates": (spec,)})
    facts = replace(BOX, ep_devices=(EpDevice("MineExecutionProvider", "npu"),))

    assert select(facts, [profile("any"), elsewhere, for_any()]).profile.name == "any+rest"
    assert select(facts, [profile("any"), elsewhere, for_any()], "elsewhere").profile.name == "elsewhere"


def test_an_operators_own_accelerator_is_tried_before_those_that_are_known():
    """Nobody writes a profile for what he does not want to use."""
    facts = replace(BOX, ep_devices=(*BOX.ep_devices, EpDevice("MineExecutionProvider", "npu")))

    chosen = select(
        facts, [profile("any"), for_accelerator("z-mine", "MineExecutionProvider"), for_accelerator("cuda", CUDA)]
    )

    assert chosen.profile.name == "any+z-mine+cuda"


def test_an_accelerator_that_the_system_lists_and_nothing_drives_is_explained():
    """`no device` alone would leave the operator to guess that an extra is missing."""
    npu = Accelerator("npu", "Intel", "AI Boost", provider=VINO)
    facts = replace(BOX, ep_devices=(EpDevice("CPUExecutionProvider", "cpu"),), accelerators=(npu,))

    verdicts = {
        each.profile: each.text for each in select(facts, [profile("any"), for_accelerator("vino", VINO)]).verdicts
    }

    assert verdicts["vino"] == f"no device of {VINO}: AI Boost is here, but nothing that is installed drives it"


def test_a_provider_that_is_installed_in_vain_is_explained():
    """Who installed CUDA's wheel reads `no device of CUDAExecutionProvider`, and would install it again."""
    facts = replace(
        BOX, ep_devices=(EpDevice("CPUExecutionProvider", "cpu"), EpDevice(CUDA, "gpu", unusable="no card"))
    )

    verdicts = {
        each.profile: each.text for each in select(facts, [profile("any"), for_accelerator("cuda", CUDA)]).verdicts
    }

    assert verdicts["cuda"] == f"no device of {CUDA}: it is installed, but no gpu for it is here"


@st.composite
def any_facts(draw: st.DrawFn) -> Facts:
    """Facts of a device that may exist: features fit the architecture, everything else is free."""
    architecture = draw(st.sampled_from(["x86_64", "aarch64", "riscv64"]))
    features = sorted(feature for feature, of in ARCHITECTURE_OF.items() if of == architecture)
    boards = ["", "Raspberry Pi 4 Model B", "Raspberry Pi 5", "NVIDIA Jetson Orin Nano", "Acme"]
    providers = draw(st.sets(st.sampled_from([*PROVIDERS, "MineExecutionProvider"])))
    return replace(
        BOX,
        os=draw(st.sampled_from(["linux", "windows", "macos", "android"])),
        architecture=architecture,
        board=draw(st.sampled_from(boards)),
        cpu=replace(
            BOX.cpu,
            vendor=draw(st.sampled_from(["Intel", "AMD", "ARM", "Apple", ""])),
            features=frozenset(draw(st.sets(st.sampled_from(features))) if features else ()),
        ),
        ep_devices=tuple(EpDevice(name, draw(st.sampled_from(["cpu", "gpu", "npu"]))) for name in sorted(providers)),
    )


@given(facts=any_facts())
def test_every_device_gets_one_processor_profile_and_at_most_one_for_each_accelerator(shipped, facts):
    """No combination of hardware may stop the agent from starting."""
    selection = select(facts, shipped)

    chosen = [each for each in shipped if each.name in selection.profile.name.split("+")]
    accelerators = [each.accelerator for each in chosen if each.accelerator]
    assert ("any" in accelerators) == any(each.provider == "MineExecutionProvider" for each in facts.ep_devices)
    assert len(chosen) == len(accelerators) + 1
    assert len(set(accelerators)) == len(accelerators)
    assert set(accelerators) - {"any"} <= {each.provider for each in facts.ep_devices}
    assert {each.profile for each in selection.verdicts if each.is_selected} == {each.name for each in chosen}


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


NPU = (
    "name: mine\ndescription: d\naccelerator: QNNExecutionProvider\ncandidates:\n  - provider: QNNExecutionProvider\n"
    "    variants: [int8]\n    options:\n      htp_performance_mode: balanced\n"
)
GOOD = "name: mine\ndescription: d\ncandidates:\n  - provider: CPUExecutionProvider\n    variants: [fp32]\n"


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        pytest.param(GOOD + "macth: {}\n", "mine.yaml:6:1", "unknown key", id="unknown-key"),
        pytest.param(GOOD.replace("mine", "yours"), "mine.yaml:1:1", "the file is called `mine`", id="name"),
        pytest.param(GOOD + "match: {cpu_features: [avx512-vnni]}\n", "mine.yaml:6:9", "unknown feature", id="feature"),
        pytest.param(GOOD + "match: {architecture: x86_64, cpu_features: [neon]}\n", "mine.yaml:6:1", "can never match",
                     id="impossible"),
        pytest.param(GOOD + "match: {architecture: arm64}\n", "mine.yaml:6:9", "no device says that it is `arm64`",
                     id="architecture"),
        pytest.param(GOOD.replace("[fp32]", "[]"), "mine.yaml:5:5", "is empty", id="no-variants"),
        pytest.param(GOOD + "    threads: [0]\n", "mine.yaml:6:5", "at least 1", id="threads"),
        pytest.param(GOOD.replace("CPUExecutionProvider", "CPU"), "mine.yaml:4:5", "as `CPUExecutionProvider` does",
                     id="provider"),
        pytest.param("[]", "mine.yaml:1:1", "mapping", id="list"),
        pytest.param(GOOD.replace("fp32", "fp23"), "mine.yaml:5:16", "'fp32'", id="variant"),
        pytest.param(NPU + "tune: {budget_s: 9}\n", "mine.yaml:9:1", "has none", id="tune-of-an-accelerator"),
        pytest.param(NPU.replace("r: QNN", "r: CUDA", 1), "mine.yaml:5:5", "is for CUDAExec", id="other-provider"),
        pytest.param(NPU.replace("r: QNN", "r: Qnn"), "mine.yaml:5:5", "knows no QnnExec", id="case-of-a-provider"),
        pytest.param(NPU.replace("mode: b", "mod: b"), "mine.yaml:8:7", "no option `htp_performance_mod`", id="option"),
        pytest.param(NPU.replace("balanced", "blanced"), "mine.yaml:8:7", "found `blanced`, expected", id="value"),
        pytest.param(NPU.replace("balanced", "[]"), "mine.yaml:7:5", "is empty", id="no-value"),
        pytest.param(GOOD + "    session_options: {session.disable_prepackin: '1'}\n", "mine.yaml:6:23",
                     "no session entry", id="session-option"),
        pytest.param(GOOD.replace("CPUExecutionProvider", "any"), "mine.yaml:3:1", "is for an accelerator", id="any"),
        pytest.param(GOOD + "accelerator: CPUExecutionProvider\n", "mine.yaml:6:1", "processor's own", id="plain-cpu"),
        pytest.param(GOOD + "match: {provider: CUDAExecutionProvider}\n", "mine.yaml:6:9", "unknown key", id="old-match"),
        pytest.param(GOOD + "limits: {p99_ms: .nan}\n", "mine.yaml:6:10", "finite", id="nan"),
        pytest.param(GOOD + "limits: {trial_s: .inf}\n", "mine.yaml:6:10", "finite", id="endless-trial"),
        pytest.param(GOOD + "limits: {memory_mb: 0}\n", "mine.yaml:6:10", "greater than 0", id="no-memory"),
        pytest.param(GOOD + "tune: {budget_s: -1}\n", "mine.yaml:6:8", "greater than or equal", id="budget"),
        pytest.param(
            NPU.replace("balanced", "[balanced, burst]") + "      vtcm_mb: [" + "'1', " * 40 + "'8']\n",
            "mine.yaml:5:5", "makes 164 combinations", id="combinations",
        ),
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
