"""Ratios against peers and ceilings, each measured in one run: `make bench`, or `python -m benchmarks NAME…`."""
