"""What the server of processes imports, once."""

from benchmarks.torture import warm

warm.after_step()
