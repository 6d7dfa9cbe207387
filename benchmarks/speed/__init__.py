"""Ours and the peers' recipes in turns, on the same model, data and batch: `python -m benchmarks.speed`."""
