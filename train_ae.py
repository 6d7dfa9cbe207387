"""Stage 1: train an autoencoder.

accelerate launch train_ae.py configs/faces/ae_kl.yaml optim.lr=3e-4 --resume latest
"""

from ldm_kit.cli import run_cli
from ldm_kit.cli.programs import train_ae as main

if __name__ == "__main__":
    run_cli(main)
