"""Sample pictures from a trained model.

python sample.py runs/demo/ldm "ginger hair in a bun, full beard, winking, smiling, tan skin, blue T-shirt" --count 4
"""

from ldm_kit.cli import run_cli
from ldm_kit.cli.programs import sample as main

if __name__ == "__main__":
    run_cli(main)
