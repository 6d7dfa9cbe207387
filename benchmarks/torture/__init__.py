"""The trainer under fire: each promise of docs/training.md tried many times, with real kills of real doors.

python -m benchmarks.torture [--share 0.1] [--only kills] [--budget SECONDS] [--list]
"""
