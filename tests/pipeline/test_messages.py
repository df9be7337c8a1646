from __future__ import annotations

import json

from agent.device.planning.plan import Candidate
from agent.pipeline.messages import Job, PipelineJob, payload_bytes, payload_message


def job(**changes):
    candidate = Candidate("CPUExecutionProvider", "cpu", "fp32", 1, (("a", "b"),), (("session.x", "0"),))
    pipeline = PipelineJob("door", "camera", {"source": "usb:0"}, 4)
    return Job(**{"model": "m", "bundle": "/b", "candidate": candidate, "pipelines": (pipeline,), **changes})


def test_job_survives_the_pipe():
    """Tuples become lists in JSON; a candidate must compare equal all the same."""
    assert Job.from_message(json.loads(json.dumps(job().to_message()))) == job()


def test_restarted_job_goes_on_with_the_ids():
    """A frame's id names one frame for as long as the agent runs."""
    assert job().going_on_at({"door": 90}).pipelines[0].first_sample_id == 90
    assert job().going_on_at({}).pipelines[0].first_sample_id == 4


def test_payload_of_any_bytes_survives_the_pipe():
    """What comes on a topic need not be text."""
    message = json.loads(json.dumps(payload_message("p", "2026-01-01T00:00:00+00:00", b"\x00\xff\n")))
    assert payload_bytes(message) == b"\x00\xff\n"
