"""Stage 1: pictures to latents and back (Rombach et al. 2022, section 3.1).

`config` builds a KL or VQ model of diffusers; `base` encodes and decodes with either; `criterion`, `adversarial` and
`codebook` are what training needs; `statistics` makes its latents fit for diffusion.
"""
