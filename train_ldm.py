"""Stage 2: train the method that a config names, such as a diffusion model of cached latents or of pixels.

accelerate launch train_ldm.py configs/faces/ldm_text.yaml optim.lr=3e-4 --resume latest
"""

from ldm_kit.cli import run_cli
from ldm_kit.cli.programs import train_ldm as main

if __name__ == "__main__":
    run_cli(main)
