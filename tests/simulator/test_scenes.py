from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from simulator import parcels
from simulator.scenes import LABELS, ConveyorScene, TruthBox

SEEDS = [pytest.param(seed, id=f"seed {seed}") for seed in (0, 7, 41)]


def truth_by_id(scene: ConveyorScene, frames: int) -> dict[int, list[tuple[int, TruthBox]]]:
    """Return each object's boxes over the first frames, with the frame's index."""
    seen: dict[int, list[tuple[int, TruthBox]]] = {}
    for index in range(frames):
        for box in scene.frame(index)[1]:
            seen.setdefault(box.object_id, []).append((index, box))
    return seen


@pytest.mark.parametrize("seed", SEEDS)
def test_same_seed_gives_equal_bytes_in_any_order(seed: int) -> None:
    """A failure seen once can be seen again, also by jumping straight to its frame."""
    first, second = ConveyorScene(seed), ConveyorScene(seed)
    ahead = [first.frame(index) for index in (0, 1, 50, 400)]
    back = [second.frame(index) for index in (400, 50, 1, 0)][::-1]
    for (pixels, truth), (pixels_again, truth_again) in zip(ahead, back, strict=True):
        assert pixels.tobytes() == pixels_again.tobytes()
        assert truth == truth_again


def test_seeds_differ() -> None:
    """Training and evaluation must not show the same pictures."""
    assert not np.array_equal(ConveyorScene(1).frame(0)[0], ConveyorScene(2).frame(0)[0])


@pytest.mark.parametrize("size", [(640, 360), (320, 180), (1280, 720), (160, 120), (401, 333)])
def test_frames_have_the_asked_size_and_boxes_stay_inside(size: tuple[int, int]) -> None:
    """A box outside the picture would be a wrong truth."""
    scene = ConveyorScene(3, *size)
    for index in range(0, 600, 60):
        pixels, truth = scene.frame(index)
        assert pixels.shape == (size[1], size[0], 3)
        assert pixels.dtype == np.uint8
        for box in truth:
            x0, y0, x1, y1 = box.xyxy_px
            assert 0 <= x0 < x1 <= size[0]
            assert 0 <= y0 < y1 <= size[1]
            assert 0 < box.visible_share <= 1
            assert box.label in LABELS


@pytest.mark.parametrize("seed", SEEDS)
def test_truth_boxes_lie_where_the_picture_differs_from_the_empty_belt(seed: int) -> None:
    """The truth is about pixels: most of what is inside a box changed, and nothing beyond the shadow around it did."""
    scene = ConveyorScene(seed)
    for index in (0, 77, 300):
        pixels, truth = scene.frame(index)
        # Both carry the same noise, so what differs is the parcels.
        change = np.abs(pixels.astype(int) - scene.empty(index)).max(axis=2)
        outside = np.ones(change.shape, bool)
        for box in truth:
            x0, y0, x1, y1 = (int(value) for value in box.xyxy_px)
            outside[max(0, y0 - 12) : y1 + 24, max(0, x0 - 12) : x1 + 22] = False
            if box.visible_share > 0.9:
                inner = change[y0:y1, x0:x1]
                assert (inner > 2).mean() > 0.6, box
                assert all(edge.max() > 2 for edge in (inner[:3], inner[-3:], inner[:, :3], inner[:, -3:])), box
        assert change[outside].max(initial=0) == 0


@pytest.mark.parametrize("harm", [parcels._crush, parcels._tear, parcels._stain, parcels._dent])
def test_each_damage_changes_a_good_part_of_the_parcel_in_more_than_one_tone(harm: Callable[..., None]) -> None:
    """Damage too small to see cannot be learned; damage of one colour would be learned too easily."""
    for seed in range(25):
        rng = np.random.default_rng(seed)
        texture, opacity = parcels._carton(rng, 100, 80), np.full((80, 100), 255, np.uint8)
        before = texture.copy()
        harm(rng, texture, opacity)
        changed = (np.abs(texture - before).max(axis=2) > 8) | (opacity == 0)
        assert 0.02 < changed.mean() < 0.75, seed
        assert texture[changed].std(axis=0).mean() > 4, seed


@pytest.mark.parametrize("seed", SEEDS)
def test_parcels_enter_left_leave_right_and_keep_their_id_and_label(seed: int) -> None:
    """Tracking is judged against these ids, and rules against these entries and exits."""
    scene = ConveyorScene(seed)
    frames = 250
    whole = 0
    for seen in truth_by_id(scene, frames).values():
        indexes = [index for index, _ in seen]
        assert len({box.label for _, box in seen}) == 1
        lefts, rights = [box.xyxy_px[0] for _, box in seen], [box.xyxy_px[2] for _, box in seen]
        assert lefts == sorted(lefts)
        assert rights == sorted(rights)
        assert max(np.diff(rights), default=0) <= 160 / scene.fps + 2, "no jumps"
        if indexes[0] > 0:
            assert lefts[0] == 0, "enters at the left edge"
        if indexes[-1] < frames - 1:
            assert rights[-1] == scene.width, "leaves at the right edge"
        whole += indexes[0] > 0 and indexes[-1] < frames - 1
    assert whole >= 5


def test_parcels_of_both_kinds_touch_or_overlap_at_times() -> None:
    """A detector trained on parcels that never meet would fail on a real belt."""
    damaged = total = covered = 0
    for seed in range(12):
        for box in ConveyorScene(seed).frame(100)[1]:
            total += 1
            damaged += box.label == "damaged"
            inside = box.xyxy_px[0] > 0 and box.xyxy_px[2] < 640
            covered += inside and box.visible_share < 0.99
    assert 0.2 < damaged / total < 0.6
    assert covered >= 2


@pytest.mark.parametrize("wrong", [{"width": 10}, {"height": 0}, {"fps": 0.0}, {"seed": -1}], ids=str)
def test_impossible_scene_is_refused(wrong: dict[str, int]) -> None:
    """A scene of no size would fail far from its cause."""
    with pytest.raises(ValueError, match="needs seed"):
        ConveyorScene(**{"seed": 0, **wrong})


def test_drawing_needs_no_more_than_numpy_and_opencv() -> None:
    """Training runs where the agent's dependencies are not installed."""
    program = "import sys; import simulator.scenes; print({'pydantic', 'onnxruntime', 'paho'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60) == "set()\n"
