"""Outputs of a model → an answer; one module for each family of models, listed in `table`."""
