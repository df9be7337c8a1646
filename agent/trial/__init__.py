"""One candidate in a child process: golden samples, benchmark, limits."""
