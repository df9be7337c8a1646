"""The loop that names the stages, the worker that runs it, and the supervision of workers."""
