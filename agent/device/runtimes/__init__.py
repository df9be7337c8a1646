"""The only place that meets ONNX Runtime: which runtimes are here, what devices they offer, and sessions on them.

Native code: imported in child processes only (probe, trial, worker), never in core.
"""
