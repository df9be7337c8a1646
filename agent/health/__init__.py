"""Lasting trouble as named conditions, each with a severity, plain advice, and the time since when."""
