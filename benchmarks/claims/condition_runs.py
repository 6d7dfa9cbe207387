"""The trainings of the benchmark of conditions: a shared first stage, text models of some hair colours, and more.

Steps are chosen so that trainings that are compared take the same processor time; what they took stands on the page.
"""

from functools import partial
from pathlib import Path

from benchmarks.claims.condition_data import faces, small_faces
from benchmarks.claims.paper_runs import Variant

CONFIGS = Path("configs/benchmarks/conditions")
BASE_STEPS = 600
TUNED_STEPS = {"init": 120, "lora": 180, "nothing": 120}  # of equal processor time
FACTOR = 4  # by which the cascade's base model is smaller along each side
PIXEL_STEPS = {"small": 220, "upscaler": 80, "pixels": 140}  # those of the last take as long as all others
_OLD, _NEW = partial(faces, "old"), partial(faces, "new")
_STAGE = "autoencoder={first-stage}"
_SMALL = partial(small_faces, "old", FACTOR)
_FROM_BASE = (_STAGE, "init={base}")
_TUNED = ("first-stage", "base", "latents-new")
_TEXT = "kind: text, width: 128, layers: 2, heads: 4, vocabulary: 1024, length: 26"  # as in configs' faces.yaml
_INPAINT = f"condition=[{{{{{_TEXT}}}}}, {{{{kind: inpainting, boxes: 0.5, strokes: 0.3}}}}]"
_BASE_SHAPE = (f"data.resolution={32 // FACTOR}", "unet.widths=[64,64]", "unet.attention_levels=[false,true]")
_UPSCALES = (
    f"condition={{kind: super_resolution, factor: {FACTOR}}}",
    "unet.attention_levels=[false,false,false]",
)
_TWO = f"condition=[{{{{{_TEXT}, column: head}}}}, {{{{kind: class, width: 128}}}}]"

VARIANTS = {
    "first-stage": Variant("faces_kl", shared=True),
    # one step, which encodes and caches the latents, so that no training that is timed has to
    "latents-old": Variant("faces", (_STAGE, "train.steps=1"), ("first-stage",), data=_OLD, shared=True),
    "latents-new": Variant("faces", (_STAGE, "train.steps=1"), ("first-stage",), data=_NEW, shared=True),
    "base": Variant("faces", (_STAGE, f"train.steps={BASE_STEPS}"), ("first-stage", "latents-old"), data=_OLD),
    "init": Variant("faces", (*_FROM_BASE, f"train.steps={TUNED_STEPS['init']}"), _TUNED, data=_NEW),
    "lora": Variant(
        "faces",
        (*_FROM_BASE, "lora.rank=8", "optim.lr=1.0e-2", f"train.steps={TUNED_STEPS['lora']}"),
        _TUNED,
        data=_NEW,
    ),
    "nothing": Variant("faces", (_STAGE, f"train.steps={TUNED_STEPS['nothing']}"), _TUNED, data=_NEW),
    "inpaint": Variant("faces", (*_FROM_BASE, _INPAINT, "train.steps=160"), ("first-stage", "base"), data=_OLD),
    "image": Variant("faces_image", (_STAGE,), ("first-stage", "latents-old"), data=_OLD),
    "prior": Variant("faces_prior", ("model={image}",), ("image",), data=_OLD),
    "pixels": Variant("faces_pixels", (f"train.steps={PIXEL_STEPS['pixels']}",), data=_OLD),
    "small": Variant("faces_pixels", (*_BASE_SHAPE, f"train.steps={PIXEL_STEPS['small']}"), data=_SMALL),
    "upscaler": Variant("faces_pixels", (*_UPSCALES, f"train.steps={PIXEL_STEPS['upscaler']}"), data=_OLD),
    "two": Variant("faces", (*_FROM_BASE, _TWO, "train.steps=160"), ("first-stage", "base"), data=_OLD),
}
