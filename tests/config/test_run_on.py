"""Where a model shall run: what no runtime can have is said before the start, and what may come by a plugin is not."""

from __future__ import annotations

import pytest

from agent.config import file as configfile
from agent.errors import ConfigurationError


def read(tmp_path, model, *, device="", cameras="door: {source: 'scene://conveyor'}"):
    path = tmp_path / "holdfast.yaml"
    path.write_text(f"version: 1\n{device}models: {{m: {{bundle: parcels, {model}}}}}\ncameras: {{{cameras}}}\n")
    return configfile.read(path, {})


def warnings(tmp_path, *args, **options):
    return [(each.key, each.hint) for each in read(tmp_path, *args, **options).warnings]


def test_provider_that_no_runtime_has_gets_a_hint(tmp_path):
    """A letter too many, and the model would run on the CPU for years with a condition that nobody understands."""
    ((key, hint),) = warnings(tmp_path, "run_on: OpenVinoExecutionProvider")
    assert key == "models.m.run_on"
    assert hint == "did you mean `OpenVINOExecutionProvider`?"


@pytest.mark.parametrize("run_on", ["auto", "cpu", "npu", "OpenVINOExecutionProvider", "CPUExecutionProvider"])
def test_what_some_runtime_may_have_is_no_matter(tmp_path, run_on):
    """Whether it is here only the probe knows."""
    assert warnings(tmp_path, f"run_on: {run_on}") == []


def test_runtime_of_ones_own_may_bring_any_provider(tmp_path):
    device = "device: {runtimes: ['plugin:/opt/acme/libacme_ep.so']}\n"
    keys = [key for key, _ in warnings(tmp_path, "run_on: AcmeExecutionProvider", device=device)]
    assert "models.m.run_on" not in keys


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        pytest.param("/opt/openvino", "this is no runtime", id="without a word before the path"),
        pytest.param("folder:openvino", "there is no ONNX Runtime in this folder", id="not installed yet"),
        pytest.param("virtual:board.yaml", "there is no such file", id="no hardware file"),
    ],
)
def test_runtime_that_is_not_there_is_said_by_the_check(tmp_path, runtime, words):
    """It does not stop the start, since what else is there runs: then here is where a person can learn of the typing error."""
    ((key, hint),) = warnings(tmp_path, "run_on: auto", device=f"device: {{runtimes: ['{runtime}']}}\n")
    text = str(read(tmp_path, "run_on: auto", device=f"device: {{runtimes: ['{runtime}']}}\n").warnings[0])
    assert key == "device.runtimes[0]"
    assert words in text
    assert hint


def test_word_that_is_neither_a_device_type_nor_a_provider_is_an_error(tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, "run_on: fastest")
    assert caught.value.problems[0].key == "models.m.run_on"


def test_pipelines_of_one_model_may_differ_in_what_they_accept(tmp_path):
    """One camera is a safety device, the other counts parcels."""
    cameras = (
        "door: {source: 'scene://conveyor', fallback: require}, yard: {source: 'scene://conveyor', fallback: allow}"
    )
    assert warnings(tmp_path, "run_on: npu", cameras=cameras) == []
