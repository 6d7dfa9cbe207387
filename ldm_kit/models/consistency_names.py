"""Names of the sampler and the schedulers of consistency models; this module imports no heavy library."""

SOLVER = "consistency"
"""The sampler that the saved options of a consistency model name; commands recognise such a model by it."""

LATENT_SCHEDULERS = ("LCMScheduler", "FlowMatchLCMScheduler")
"""diffusers' schedulers of latent consistency models, and of those that ldm_kit trains."""

KARRAS_SCHEDULER = "CMStochasticIterativeScheduler"
"""diffusers' scheduler of consistency models in the form of Song et al. 2023."""
