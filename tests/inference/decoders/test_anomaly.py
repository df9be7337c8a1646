"""The anomaly decoder: a number is an answer, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from agent.errors import CandidateError
from agent.inference.decoders.anomaly import decode_anomaly


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_one_number_of_any_usual_shape_is_the_score(shape, dtype):
    """Exporters differ in the shape of a scalar, and fp16 variants in its type."""
    assert decode_anomaly({"score": np.full(shape, 2.5, dtype)}).value == 2.5


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        pytest.param({"score": np.array([np.nan], np.float32)}, "nan", id="nan"),
        pytest.param({"score": np.array([np.inf], np.float32)}, "inf", id="infinite"),
        pytest.param({"score": np.zeros((1, 2), np.float32)}, "(1, 2)", id="two-numbers"),
        pytest.param({"score": np.zeros((0,), np.float32)}, "(0,)", id="none"),
        pytest.param({"label": np.array([1], np.int64)}, "int64", id="label"),
        pytest.param({"score": [{"a": 1.0}]}, "list", id="zipmap"),
        pytest.param({}, "0 outputs", id="no-output"),
        pytest.param({"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)}, "2 outputs (a, b)", id="two"),
    ],
)
def test_anything_else_refuses_the_candidate_and_says_what_came(outputs, told):
    """NaN compares false with every threshold: it would be a machine that is healthy for ever."""
    with pytest.raises(CandidateError) as caught:
        decode_anomaly(outputs)
    assert told in str(caught.value)
