"""Name of the sampler of consistency models; this module imports no heavy library."""

SOLVER = "consistency"
"""The sampler that the saved options of a consistency model name; commands recognise such a model by it."""
