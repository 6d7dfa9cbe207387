"""Edit your own picture with a trained model.

python edit.py --model runs/diffae --image my.png --attribute "skin tone: dark" --strength 0.3
"""

from ldm_kit.cli import run_cli
from ldm_kit.cli.programs import EDIT as main

if __name__ == "__main__":
    run_cli(main)
