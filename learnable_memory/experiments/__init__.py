"""Experiments: cards say what is compared, the engine runs what is missing, reports are made of result files."""
