"""Which detection is which object: detections of one frame in, tracks with lasting ids out.

Two-stage association after ByteTrack (Zhang et al. 2022): sure detections first, then unsure ones, which may continue
an object that was sure before; boxes are predicted by a Kalman filter (`agent.events.motion`). What differs, and why:

- Everything that arrives has passed the operator's threshold in the decoder, so an unsure detection may also *begin* a
  track, after the sure ones took theirs: an operator who set 0.3 wants to see objects at 0.4.
- Pairs are taken greedily, highest overlap first, instead of by an optimal assignment. Pairs that compete above the
  overlap asked for are rare at our object counts, an optimal one needs scipy or a slow loop of our own, and greedy
  keeps the better-fitting of two rivals, which is what a person would do.
- Times are seconds, not frames: frame rates vary, and the latest frame wins.

Refuses: boxes that are not finite or have no area; more than `MAX_TRACKS` objects at once. Ids are never used twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.events import motion
from agent.inference.answers import Detections

SURE_SCORE = 0.5
"""Detections at or above are matched first."""
MIN_OVERLAP = 0.2
"""Least IoU with the predicted box for a sure detection (ByteTrack: 1 − 0.8) …"""
MIN_OVERLAP_UNSURE = 0.5
"""… and for an unsure one (ByteTrack: 1 − 0.5)."""
CONFIRM_HITS = 3
"""Consecutive frames that make a detection an object (SORT's min_hits): single false ones never speak."""
LOST_S = 1.0
"""How long an object may stay unseen (behind a pillar, a flickering detector) before it is gone."""
GAP_S = 10.0
"""After so long without any frame nothing is known any more: every object is gone."""
MAX_TRACKS = 256


@dataclass(frozen=True, slots=True)
class Track:
    """One object that was seen in several frames. Times are the tracker's, in seconds."""

    id: int
    class_id: int
    score: float
    """Of the latest detection."""
    top_score: float
    """The best so far: a threshold held against it is crossed once and never again."""
    xyxy_px: tuple[float, float, float, float]
    """As detected when it was last seen; left, top, right, bottom in pixels of the frame."""
    first_seen_s: float
    last_seen_s: float
    hits: int
    is_seen: bool = True
    """In the latest frame; otherwise it was there a moment ago, and nobody knows where it is now."""


@dataclass(frozen=True, slots=True)
class TrackUpdate:
    """The tracker's answer to one frame, each sorted by id."""

    live: tuple[Track, ...]
    """Confirmed objects that are seen now, or were a moment ago."""
    ended: tuple[Track, ...]
    """Confirmed objects that are gone since the last frame."""


@dataclass(slots=True)
class _Entry:
    """A track in the making. Row i of the motion state belongs to entry i."""

    class_id: int
    score: float
    top_score: float
    xyxy_px: tuple[float, float, float, float]
    first_seen_s: float
    last_seen_s: float
    hits: int = 1
    id: int | None = None
    """Given when it is confirmed."""
    is_seen: bool = True
    """In the latest frame."""

    def hit(self, score: float, box: tuple[float, float, float, float], at_s: float) -> None:
        self.score = score
        self.top_score = max(self.top_score, score)
        self.xyxy_px = box
        self.last_seen_s = at_s
        self.hits += 1
        self.is_seen = True

    def track(self) -> Track:
        assert self.id is not None
        return Track(
            self.id, self.class_id, self.score, self.top_score, self.xyxy_px,
            self.first_seen_s, self.last_seen_s, self.hits, self.is_seen,
        )  # fmt: skip


class Tracker:
    """The objects in front of one camera. One `update` a frame, from one thread."""

    def __init__(self, *, lost_s: float = LOST_S, confirm_hits: int = CONFIRM_HITS) -> None:
        self._lost_s = lost_s
        self._confirm_hits = confirm_hits
        self._entries: list[_Entry] = []
        self._state = np.empty((5, 0, 4))
        self._next_id = 1
        self._at_s: float | None = None
        self._frame_size: tuple[int, int] | None = None

    def update(self, detections: Detections, at_s: float, frame_size: tuple[int, int]) -> TrackUpdate:
        """Take the detections of the frame of `frame_size` (width, height) at `at_s` seconds; give the tracks.

        A time before the last one counts as the last one. When the frame's size changed, objects are scaled with it.
        """
        elapsed_s = 0.0 if self._at_s is None else max(0.0, at_s - self._at_s)
        self._at_s = at_s if self._at_s is None else max(self._at_s, at_s)
        ended = self.finish() if elapsed_s > GAP_S else ()
        self._follow_size(frame_size)
        self._observe(detections, self._at_s, elapsed_s)
        ended += self._prune()
        return TrackUpdate(self._live(), ended)

    def finish(self) -> tuple[Track, ...]:
        """Forget every object and return those that were confirmed: the source has ended, or was away too long."""
        ended = self._live()
        self._keep([])
        return ended

    def _observe(self, detections: Detections, at_s: float, elapsed_s: float) -> None:
        """Predict, match in three rounds, begin new tracks with what is left."""
        if self._entries:  # an empty scene is the usual one: it costs nothing
            for entry in self._entries:
                entry.is_seen = False
            motion.predict(self._state, elapsed_s)
        if not len(detections.scores):
            return
        boxes, usable = _usable(detections)
        if not usable:
            return
        overlaps = self._overlaps(boxes, detections.class_ids)
        sure = [index for index in usable if detections.scores[index] >= SURE_SCORE]
        unsure = [index for index in usable if detections.scores[index] < SURE_SCORE]
        confirmed = [row for row, entry in enumerate(self._entries) if entry.id is not None]
        tentative = [row for row, entry in enumerate(self._entries) if entry.id is None]
        pairs = match(overlaps, confirmed, sure, MIN_OVERLAP)
        pairs |= match(overlaps, _without(confirmed, pairs), unsure, MIN_OVERLAP_UNSURE)
        taken = set(pairs.values())
        left = [index for index in (*sure, *unsure) if index not in taken]
        pairs |= match(overlaps, tentative, left, MIN_OVERLAP)
        self._hit(pairs, detections, boxes, at_s)
        taken = set(pairs.values())
        self._begin([index for index in left if index not in taken], detections, boxes, at_s)

    def _overlaps(self, boxes: motion.FloatArray, class_ids: NDArray[np.int64]) -> motion.FloatArray:
        """Return IoU (tracks, detections) of predicted and detected boxes; 0 between different classes."""
        if not self._entries:
            return np.zeros((0, len(boxes)))
        mine = np.array([entry.class_id for entry in self._entries])
        overlaps = iou(motion.to_xyxy(self._state[motion.POSITION]), boxes)
        return np.where(mine[:, None] == class_ids[None, :], overlaps, 0.0)

    def _hit(self, pairs: dict[int, int], detections: Detections, boxes: motion.FloatArray, at_s: float) -> None:
        if not pairs:
            return
        rows, indices = list(pairs), list(pairs.values())
        motion.correct(self._state, rows, motion.to_cxcywh(boxes[indices]))
        for row, index in pairs.items():
            self._entries[row].hit(float(detections.scores[index]), _box(boxes[index]), at_s)
        for row in sorted(rows):
            if self._entries[row].id is None and self._entries[row].hits >= self._confirm_hits:
                self._entries[row].id = self._next_id
                self._next_id += 1

    def _begin(self, indices: list[int], detections: Detections, boxes: motion.FloatArray, at_s: float) -> None:
        """Begin tracks; where there is no more room the surest detections go first, since they come first."""
        indices = indices[: MAX_TRACKS - len(self._entries)]
        if not indices:
            return
        begun = motion.begin(motion.to_cxcywh(boxes[indices]))
        self._state = np.concatenate([self._state, begun], axis=1)
        for index in indices:
            score = float(detections.scores[index])
            entry = _Entry(int(detections.class_ids[index]), score, score, _box(boxes[index]), at_s, at_s)
            if self._confirm_hits <= 1:
                entry.id = self._next_id
                self._next_id += 1
            self._entries.append(entry)

    def _prune(self) -> tuple[Track, ...]:
        """Drop tentative tracks that were missed once, and confirmed ones that were unseen for too long."""
        if not self._entries:
            return ()
        assert self._at_s is not None
        gone = [
            not entry.is_seen and (entry.id is None or self._at_s - entry.last_seen_s > self._lost_s)
            for entry in self._entries
        ]
        if not any(gone):
            return ()
        ended = [entry.track() for entry, is_gone in zip(self._entries, gone, strict=True) if is_gone and entry.id]
        self._keep([row for row, is_gone in enumerate(gone) if not is_gone])
        return tuple(sorted(ended, key=_by_id))

    def _keep(self, rows: list[int]) -> None:
        self._entries = [self._entries[row] for row in rows]
        self._state = self._state[:, rows]

    def _live(self) -> tuple[Track, ...]:
        return tuple(sorted((entry.track() for entry in self._entries if entry.id is not None), key=_by_id))

    def _follow_size(self, frame_size: tuple[int, int]) -> None:
        if self._frame_size is not None and self._frame_size != frame_size:
            factors = (frame_size[0] / self._frame_size[0], frame_size[1] / self._frame_size[1])
            motion.rescale(self._state, *factors)
            for entry in self._entries:
                left, top, right, bottom = entry.xyxy_px
                entry.xyxy_px = (left * factors[0], top * factors[1], right * factors[0], bottom * factors[1])
        self._frame_size = frame_size


def iou(first: motion.FloatArray, second: motion.FloatArray) -> motion.FloatArray:
    """Return the intersection over union (n, m) of boxes (n, 4) and (m, 4), xyxy, each with an area."""
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    size = np.maximum(bottom_right - top_left, 0.0)
    common = size[..., 0] * size[..., 1]
    total = _area(first)[:, None] + _area(second)[None, :] - common
    return np.asarray(common / total)


def match(overlaps: motion.FloatArray, rows: list[int], columns: list[int], min_overlap: float) -> dict[int, int]:
    """Pair `rows` with `columns` of `overlaps` greedily, highest first; ties go to the lower row, then column."""
    if not rows or not columns:
        return {}
    part = overlaps[rows][:, columns]
    at_row, at_column = np.nonzero(part >= min_overlap)
    order = np.argsort(-part[at_row, at_column], kind="stable")
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for row, column in zip(at_row[order].tolist(), at_column[order].tolist(), strict=True):
        if rows[row] not in pairs and columns[column] not in taken:
            pairs[rows[row]] = columns[column]
            taken.add(columns[column])
    return pairs


def _usable(detections: Detections) -> tuple[motion.FloatArray, list[int]]:
    """Return all boxes as float64 and the indices of those that are finite and have an area."""
    boxes = detections.xyxy_px.astype(np.float64).reshape(-1, 4)
    with np.errstate(invalid="ignore"):
        has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    usable = has_area & np.isfinite(boxes).all(axis=1) & np.isfinite(detections.scores)
    if not usable.all():
        boxes[~usable] = (0.0, 0.0, 1.0, 1.0)  # never matched, but keeps the arithmetic quiet
    return boxes, np.flatnonzero(usable).tolist()


def _area(boxes: motion.FloatArray) -> motion.FloatArray:
    return np.asarray((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def _box(row: motion.FloatArray) -> tuple[float, float, float, float]:
    left, top, right, bottom = row.tolist()
    return (left, top, right, bottom)


def _by_id(track: Track) -> int:
    return track.id


def _without(rows: list[int], pairs: dict[int, int]) -> list[int]:
    return [row for row in rows if row not in pairs]
