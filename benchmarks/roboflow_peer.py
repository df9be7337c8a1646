"""The peer: Roboflow's `InferencePipeline` with the same model, video and pre- and postprocessing.

Runs in an environment of its own (`pip install inference`; about 7 GB), named by HOLDFAST_ROBOFLOW_PYTHON; it needs nothing of
Holdfast there but this folder. Prints one JSON line with the same figures as benchmarks.ideal.

    python -m benchmarks.roboflow_peer VIDEO MODEL THREADS
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ.update(
    TELEMETRY_OPT_OUT="True",
    METRICS_ENABLED="False",
    OFFLINE_MODE="True",
    CORE_MODELS_ENABLED="False",
    LOG_LEVEL="ERROR",
)  # before the import: it reads them once


def main() -> None:
    """Run the pipeline over the whole video and print its figures."""
    import numpy as np
    from inference import InferencePipeline  # type: ignore[import-not-found]
    from inference.core.interfaces.camera.video_source import (  # type: ignore[import-not-found]
        BufferConsumptionStrategy,
        BufferFillingStrategy,
    )

    from benchmarks.ideal import SIZE, decode, open_model, prepare
    from benchmarks.processes import peak_rss_mb

    video, model, threads = sys.argv[1:4]
    infer = open_model(model, int(threads))
    infer(np.zeros((1, 3, SIZE[1], SIZE[0]), np.float32))
    done_s: list[float] = []

    def on_frames(frames: list[Any]) -> list[dict[str, Any]]:
        return [{"outputs": infer(prepare(frame.image)), "size": frame.image.shape[1::-1]} for frame in frames]

    def on_prediction(predictions: Any, _frames: Any) -> None:  # noqa: ANN401  one or a list of them
        for prediction in predictions if isinstance(predictions, list) else [predictions]:
            decode(prediction["outputs"], tuple(prediction["size"]))
            done_s.append(time.perf_counter())

    pipeline = InferencePipeline.init_with_custom_logic(
        video_reference=video,
        on_video_frame=on_frames,
        on_prediction=on_prediction,
        # Every frame counts, and none is thrown away: its fastest setting for a file.
        source_buffer_filling_strategy=BufferFillingStrategy.WAIT,
        source_buffer_consumption_strategy=BufferConsumptionStrategy.LAZY,
    )
    cpu_s = time.process_time()
    pipeline.start()
    pipeline.join()
    cpu_s = time.process_time() - cpu_s
    figures = {
        "frames": len(done_s),
        "fps": (len(done_s) - 1) / (done_s[-1] - done_s[0]),
        "cpu_ms_per_frame": cpu_s / len(done_s) * 1000,
        "rss_mb": peak_rss_mb("self"),
    }
    print(json.dumps({name: round(float(value), 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
