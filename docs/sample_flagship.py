"""Sample docs/flagship.png in plain diffusers: python docs/sample_flagship.py [MODEL]

MODEL is the model of configs/faces/ldm_text.yaml, runs/faces/ldm_text/model unless given. ldm_kit is not imported.
"""

import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

PROMPTS = (
    "blond hair in a bun, neck-length at the back, no beard, winking, arched eyebrows, laughing, light skin, "
    "red turtleneck",
    "portrait of someone in a green V-neck sweater, smiling, wide eyes, level eyebrows, full beard, tan skin, "
    "side-swept black hair, short at the back",
    "a person with dark skin, spiky ginger hair, long and wavy at the back, no beard, open eyes, worried eyebrows, "
    "gasping, wearing a blue open jacket",
    "dark brown hair in an undercut, short at the back, twirled moustache, squinting, angry eyebrows, grimacing, "
    "rosy skin, yellow sleeveless top",
)
SCALE, GAP = 3, 8  # times that a pixel is repeated, and pixels between pictures


def main(model: str) -> None:
    """Write the picture beside this script."""
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    images = [
        pipeline(prompt, num_inference_steps=20, guidance_scale=2.0, generator=torch.Generator().manual_seed(0)).images[
            0
        ]
        for prompt in PROMPTS
    ]
    side = SCALE * images[0].width
    row = Image.new("RGB", (len(images) * (side + GAP) - GAP, side), "white")
    for number, image in enumerate(images):
        row.paste(image.resize((side, side), Image.Resampling.NEAREST), (number * (side + GAP), 0))
    row.save(Path(__file__).parent / "flagship.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:] or ["runs/faces/ldm_text/model"])
