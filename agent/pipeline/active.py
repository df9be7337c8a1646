"""What a pipeline's samples are worked on with, and what the loop wants of it: the model's steps, and the judge's.

Values and protocols; the loop (`agent.pipeline.loop`) carries them, `agent.pipeline.assembly` makes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from agent.events.event import Event
from agent.inference.answers import Answer
from agent.pipeline.stages import Tally
from agent.sources.sample import Sample

SampleT = TypeVar("SampleT", bound=Sample)
SampleT_contra = TypeVar("SampleT_contra", bound=Sample, contravariant=True)
ObservationT = TypeVar("ObservationT")

Tensors: TypeAlias = Any
"""A model's inputs or outputs: its own affair, the loop only carries them."""


class Model(Protocol[SampleT_contra]):
    """What the loop wants of a model. The steps run in three threads, and for other pipelines at the same time."""

    def prepare(self, sample: SampleT_contra) -> Tensors:
        """Return the inputs for one sample, in memory of their own: the next sample is prepared while these run."""
        ...

    def infer(self, inputs: Tensors) -> Tensors:
        """Return the outputs. Raises CandidateError where the provider failed."""
        ...

    def decode(
        self,
        outputs: Tensors,
        sample: SampleT_contra,
        *,
        min_score: float | None = None,
        class_ids: frozenset[int] | None = None,
    ) -> Answer:
        """Return the answer. Raises for outputs that are none (NaN, wrong shape)."""
        ...


class Judge(Protocol[ObservationT]):
    """What the loop wants of tracking and rules (agent.events.judge)."""

    def track(self, answer: Answer, sample: Sample) -> ObservationT: ...
    def judge(self, observation: ObservationT) -> Sequence[Event]: ...
    def finish(self) -> Sequence[Event]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Active(Generic[SampleT]):
    """Everything that a sample is worked on with: replaced whole, so that its parts always belong together."""

    model: Model[SampleT]
    judge: Judge[Any]
    """Used from the finishing thread only. Tracks and begun events live in it: where the next value has the same judge
    they go on, else they are ended when the next value's first sample is finished."""
    min_score: float | None = None
    class_ids: frozenset[int] | None = None
    made_by: Mapping[str, str] = field(default_factory=dict)
    """The bundle that its events are from."""
    has_fallbacks: bool = False
    """When the provider fails, another session takes its place: the sample at hand is kept for it."""
    tally: Tally = field(default_factory=Tally)
