"""Trains the parcel detector on generated pictures and writes model.onnx, checked against PyTorch.

    PYTHONPATH=<repository> python bundles/recipes/parcels/train.py --minutes 16

Needs torch and onnx beside numpy, OpenCV and onnxruntime; the agent's own dependencies are not needed.
The network is anchor-free with one output grid of stride 8; its output has the layout of YOLOv8/11 (decoder `yolo`):
[1, 4 + classes, cells], centre x, centre y, width, height in input pixels, then one sigmoid score per class.
Assignment follows TOOD (task alignment, arXiv:2108.07755), the box loss is GIoU (arXiv:1902.09630).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from agent.clock import SystemClock
from simulator.scenes import LABELS, ConveyorScene

HEIGHT, WIDTH, STRIDE = 192, 320, 8
CLASSES = len(LABELS)
MOST_BOXES = 16
FRAMES_PER_SCENE = 8
TRAINING_SEEDS = 100_000
"""Training scenes have seeds from here upwards; evaluation, calibration and golden pictures stay below."""
LEAST_VISIBLE = 0.3
"""Parcels with a smaller visible share are neither right nor wrong: their cells are left out of the loss."""
HERE = Path(__file__).resolve().parent


class Block(nn.Sequential):
    """A dense 3×3 convolution, so that INT8 pays, batch norm (folded at export) and ReLU (folds into INT8)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )


class Detector(nn.Module):
    """Image (batch, 3, HEIGHT, WIDTH), RGB from 0 to 1 → (batch, 4 + CLASSES, cells)."""

    def __init__(self) -> None:
        super().__init__()
        self.near = nn.Sequential(
            Block(3, 16, 2), Block(16, 24, 2), Block(24, 24), Block(24, 48, 2), Block(48, 48), Block(48, 48)
        )
        self.far = nn.Sequential(Block(48, 80, 2), Block(80, 80), Block(80, 80))
        self.lateral = nn.Conv2d(80, 48, 1)
        self.merge = nn.Sequential(Block(48, 48), Block(48, 48))
        self.boxes = nn.Conv2d(48, 4, 1)
        self.scores = nn.Conv2d(48, CLASSES, 1)
        nn.init.constant_(self.scores.bias, -4.0)  # few cells hold a parcel: RetinaNet's prior
        grid = torch.stack(torch.meshgrid(torch.arange(WIDTH // STRIDE), torch.arange(HEIGHT // STRIDE), indexing="xy"))
        self.register_buffer("centres", (grid.reshape(1, 2, -1).float() + 0.5) * STRIDE)

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (batch, 4, cells) as cx, cy, w, h in pixels, and score logits (batch, CLASSES, cells)."""
        near = self.near(images)
        far = functional.interpolate(self.lateral(self.far(near)), scale_factor=2.0, mode="nearest")
        shared = self.merge(near + far)
        offsets, logits = self.boxes(shared).flatten(2), self.scores(shared).flatten(2)
        middle = self.centres + offsets[:, :2] * STRIDE
        size = torch.exp(offsets[:, 2:].clamp(-3, 3)) * (4 * STRIDE)
        return torch.cat((middle, size), 1), logits

    def forward(self, images: Tensor) -> Tensor:
        boxes, logits = self.raw(images)
        return torch.cat((boxes, logits.sigmoid()), 1)


@dataclass(frozen=True)
class Pictures:
    """What is learned from: `images` uint8 (count, HEIGHT, WIDTH, 3) BGR; `boxes` (count, MOST_BOXES, 4) xyxy px;
    `labels` (count, MOST_BOXES) an index into LABELS, −1 for a box to ignore, −2 for no box.
    """

    images: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def shrink(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Bring a frame to the model's size; a third as a small JPEG, as calibration and golden pictures are."""
    if rng.random() < 0.33:
        small = cv2.resize(pixels, (320, 180), interpolation=cv2.INTER_AREA)
        _, data = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(70, 95))])
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)


def draw_pictures(scenes: int) -> Pictures:
    """Render FRAMES_PER_SCENE frames, far apart, of each of so many scenes."""
    count = scenes * FRAMES_PER_SCENE
    images = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    boxes = np.zeros((count, MOST_BOXES, 4), np.float32)
    labels = np.full((count, MOST_BOXES), -2, np.int64)
    at = 0
    for seed in range(TRAINING_SEEDS, TRAINING_SEEDS + scenes):
        rng = np.random.default_rng(seed)
        scene = ConveyorScene(seed)
        for index in np.arange(FRAMES_PER_SCENE) * 90 + rng.integers(0, 90, FRAMES_PER_SCENE):
            pixels, truth = scene.frame(int(index))
            images[at] = shrink(pixels, rng)
            for row, box in enumerate(truth[:MOST_BOXES]):
                boxes[at, row] = np.array(box.xyxy_px) * ((WIDTH / 640, HEIGHT / 360) * 2)
                labels[at, row] = LABELS.index(box.label) if box.visible_share >= LEAST_VISIBLE else -1
            at += 1
    return Pictures(images, boxes, labels)


def batch_of(pictures: Pictures, chosen: NDArray[np.int64], rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return images, boxes and labels with flips, light and colour changed at random."""
    images = pictures.images[chosen].astype(np.float32) / 255
    boxes = pictures.boxes[chosen].copy()
    if rng.random() < 0.5:
        images = images[:, :, ::-1]
        boxes[..., [0, 2]] = WIDTH - boxes[..., [2, 0]]
    if rng.random() < 0.3:
        images = images[:, ::-1]
        boxes[..., [1, 3]] = HEIGHT - boxes[..., [3, 1]]
    count = len(chosen)
    images = images * rng.uniform(0.75, 1.25, (count, 1, 1, 1)) * rng.uniform(0.93, 1.07, (count, 1, 1, 3))
    images = np.clip(images + rng.uniform(-0.06, 0.06, (count, 1, 1, 1)), 0, 1)
    rgb = np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2), np.float32)
    return torch.from_numpy(rgb), torch.from_numpy(boxes), torch.from_numpy(pictures.labels[chosen])


def corners(boxes: Tensor) -> Tensor:
    """Turn (…, 4) cx, cy, w, h into x1, y1, x2, y2."""
    return torch.cat((boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2), -1)


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalised IoU of xyxy boxes that broadcast against each other."""
    inside = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inside + 1e-6
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1) + 1e-6
    iou = inside / union
    return iou, iou - (hull - union) / hull


def assign(
    boxes: Tensor, scores: Tensor, truth: Tensor, labels: Tensor, centres: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Give each truth box the 8 cells inside it that score and fit best (TOOD with alpha 0.5, beta 6).

    Returns per cell: the index of its truth box, whether it has one, and the score it should reach.
    """
    iou, _ = overlap(truth[:, :, None], boxes[:, None])
    inside = ((centres > truth[:, :, None, :2]) & (centres < truth[:, :, None, 2:])).all(-1)
    own = scores.gather(1, labels.clamp(0)[:, :, None].expand(-1, -1, scores.shape[2]))
    metric = own.sqrt() * iou.clamp(1e-4).pow(6) * (inside & (labels >= 0)[:, :, None])
    floor = metric.topk(8, dim=2).values[..., -1:]
    metric = metric * (metric >= floor.clamp(1e-12))
    best = metric.amax(2, keepdim=True).clamp(1e-12)
    reach = (iou * (metric > 0)).amax(2, keepdim=True)
    strength, chosen = metric.max(1)
    target = (metric / best * reach).gather(1, chosen[:, None])[:, 0]
    return chosen, strength > 0, target


def loss_of(model: Detector, images: Tensor, truth: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the score loss (BCE against the aligned score) and the box loss (GIoU)."""
    raw, logits = model.raw(images)
    boxes = corners(raw.transpose(1, 2))
    centres = model.centres[0].T[None, None]
    with torch.no_grad():
        chosen, is_taken, strength = assign(boxes, logits.sigmoid(), truth, labels, centres)
        cell_labels = labels.gather(1, chosen).clamp(0)
        target = functional.one_hot(cell_labels, CLASSES).transpose(1, 2) * (strength * is_taken)[:, None]
        inside = ((centres > truth[:, :, None, :2]) & (centres < truth[:, :, None, 2:])).all(-1)
        is_ignored = (inside & (labels == -1)[:, :, None]).any(1) & ~is_taken
        total = target.sum().clamp(1)
    bce = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    score_loss = (bce * ~is_ignored[:, None]).sum() / total
    own = truth.gather(1, chosen[..., None].expand(-1, -1, 4))
    _, giou = overlap(boxes[is_taken], own[is_taken])
    return score_loss + 2.0 * ((1 - giou) * strength[is_taken]).sum() / total


def train(model: Detector, pictures: Pictures, seconds: float, batch: int, checkpoint: Callable[[], None]) -> None:
    """Fit for so many seconds: AdamW, a short warm-up, then cosine decay."""
    rng = np.random.default_rng(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02)
    clock = SystemClock()
    started, step, running, saved = clock.monotonic(), 0, 0.0, 0
    while (progress := (clock.monotonic() - started) / seconds) < 1:
        rate = 2.5e-3 * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * (1 + np.cos(np.pi * progress)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = rng.integers(0, len(pictures.images), batch)
        loss = loss_of(model, *batch_of(pictures, chosen, rng))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        step, running = step + 1, 0.98 * running + 0.02 * loss.item()
        if step % 100 == 0:
            print(f"{progress:5.1%} step {step} loss {running / (1 - 0.98**step):.3f}", flush=True)
        if int(progress * 5) > saved:  # four looks on the way
            saved = int(progress * 5)
            checkpoint()


def export(model: Detector, path: Path) -> None:
    """Write the ONNX file and hold it against PyTorch on random pictures, to 1e-4 of pixels and scores."""
    was_training = model.training
    model.eval()
    images = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.onnx.export(
        model, (images,), path, opset_version=17, input_names=["images"], output_names=["output0"], dynamo=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(images).numpy()
    found = session.run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, output {found.shape}, equal to PyTorch", flush=True)
    model.train(was_training)


def main() -> None:
    """Draw, train, export."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=16.0)
    parser.add_argument("--scenes", type=int, default=700)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "model.onnx")
    options = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(options.threads)
    clock = SystemClock()
    started = clock.monotonic()
    pictures = draw_pictures(options.scenes)
    print(f"{len(pictures.images)} pictures in {clock.monotonic() - started:.0f} s", flush=True)
    model = Detector()
    print(f"{sum(weights.numel() for weights in model.parameters())} parameters", flush=True)
    train(model, pictures, options.minutes * 60, options.batch, lambda: export(model, options.output))
    export(model, options.output)


if __name__ == "__main__":
    main()
