"""Run by test_plain_diffusers in an interpreter of its own: opens saved models where ldm_kit cannot be imported."""

import importlib.abc
import json
import sys
from pathlib import Path

HIDDEN = ("ldm_kit", "autoencoder", "conditioning")


class Blocker(importlib.abc.MetaPathFinder):
    """Ours is not installed here."""

    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] in HIDDEN:
            raise ImportError(f"{fullname} must not be needed")


def draw(job):
    """One job's picture, [h, w, 3] in 0..1."""
    import diffusers
    import torch

    pipeline = getattr(diffusers, job["pipeline"]).from_pretrained(job["folder"], local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if job.get("solver"):
        pipeline.scheduler = getattr(diffusers, job["solver"]).from_config(pipeline.scheduler.config)
    if job["pipeline"] == "StableDiffusionPipeline":
        noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(job["seed"]))
        found = pipeline(**job["call"], latents=noise, output_type="np")
    elif job["pipeline"].startswith("StableDiffusion"):
        picture = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)
        mask = {"mask_image": (picture[:, :1] > 0.5).float()} if "Inpaint" in job["pipeline"] else {}
        noise = torch.Generator().manual_seed(job["seed"])
        found = pipeline(**job["call"], image=picture, **mask, generator=noise, output_type="np")
    else:
        noise = torch.Generator().manual_seed(job["seed"])
        found = pipeline(**job["call"], generator=noise, output_type="np")
    return found.images[0]


def main(jobs, out):
    """Draw all jobs into one .npz."""
    sys.meta_path.insert(0, Blocker())
    import numpy as np

    pictures = {job["name"]: draw(job) for job in json.loads(Path(jobs).read_text())}
    assert not {name.partition(".")[0] for name in sys.modules} & set(HIDDEN)
    np.savez(out, **pictures)


if __name__ == "__main__":
    main(*sys.argv[1:])
