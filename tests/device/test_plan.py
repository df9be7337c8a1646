"""The names of candidates: short, and none like another."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.device.planning.plan import Candidate, labels


def gpu(**options: str) -> Candidate:
    return Candidate("OpenVINOExecutionProvider", "gpu", "fp16", 1, tuple(sorted(options.items())))


@pytest.mark.parametrize(
    ("candidates", "names"),
    [
        pytest.param([gpu(precision="f16")], ["OpenVINO gpu fp16"], id="one-alone"),
        pytest.param(
            [gpu(precision="f16"), gpu(precision="f32")],
            ["OpenVINO gpu fp16 precision=f16", "OpenVINO gpu fp16 precision=f32"],
            id="told-apart-by-an-option",
        ),
        pytest.param(
            [gpu(load_config='{"GPU": {"HINT": "f16"}}'), gpu(load_config='{"GPU": {"HINT": "f32", "N": 2}}')],
            ["OpenVINO gpu fp16 f16", "OpenVINO gpu fp16 f32,2"],
            id="json-is-its-values",
        ),
        pytest.param(
            [gpu(load_config='{"A": 1}'), gpu(load_config='{"B": 1}')],
            ['OpenVINO gpu fp16 load_config={"A": 1}', 'OpenVINO gpu fp16 load_config={"B": 1}'],
            id="json-in-full-where-its-values-are-alike",
        ),
        pytest.param(
            [replace(gpu(precision=precision), device=name) for name in ("Arc", "UHD") for precision in ("f16", "f32")],
            [f"OpenVINO gpu fp16 precision={value} on {name}" for name in ("Arc", "UHD") for value in ("f16", "f32")],
            id="told-apart-by-a-device",
        ),
        pytest.param(
            [gpu(load_config="{broken"), gpu(load_config="7")],
            ["OpenVINO gpu fp16 load_config={broken", "OpenVINO gpu fp16 load_config=7"],
            id="no-json-object",
        ),
    ],
)
def test_a_name_says_what_sets_it_apart_and_no_more(candidates, names):
    """A column of forty characters of JSON leaves no room for the numbers."""
    assert list(labels(candidates).values()) == names
