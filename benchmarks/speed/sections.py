"""The tables: training of both stages, sampling, and the share of the machine that a step reaches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks.speed import machine, ours, peers, strangers
from benchmarks.speed.page import table
from benchmarks.speed.turns import Measured, Plan, Work, in_turns
from benchmarks.speed.world import World, denoiser
from ldm_kit.methods.latent import LatentRun
from ldm_kit.models.options import SamplingOptions

HEAD = ("", "a second", "times the first row", "within a turn", "in processor time")
GAME = "loss.adversarial={start: 0}"
ADAMW = "optim.muon=null"  # the peers' optimiser: what a step costs apart from that choice
JUDGE = "discriminator={layers: 2}"


@dataclass(frozen=True)
class Size:
    """A U-Net and its batch."""

    name: str
    widths: tuple[int, ...]
    batch: int

    @classmethod
    def of(cls, name: str, settings: LatentRun) -> "Size":
        """That of a config."""
        return cls(name, tuple(settings.unet.widths), settings.train.batch_size)

    @property
    def overrides(self) -> tuple[str, ...]:
        """Of the demo's config."""
        return f"unet.widths={list(self.widths)}", f"train.batch_size={self.batch}"

    @property
    def wide(self) -> str:
        """The widths in words."""
        return f"{' and '.join(map(str, self.widths))} channels wide"

    @property
    def shown(self) -> str:
        """All in words."""
        return f"{self.wide}, batch {self.batch}"


MIDDLE, LARGE, QUICK = Size("middle", (128, 256), 64), Size("large", (192, 416), 16), Size("quick", (32, 64), 4)


@dataclass(frozen=True)
class Bench:
    """The world, how often, and whether only to see that all works."""

    world: World
    plan: Plan
    quick: bool = False

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Of stage 2: the demo's, and two more."""
        return (QUICK,) if self.quick else (Size.of("demo", self.world.stage2()), MIDDLE, LARGE)

    @property
    def size(self) -> Size:
        """Of stage 2, where one size has to do."""
        return QUICK if self.quick else MIDDLE

    def measured(self, variants: Mapping[str, Work]) -> dict[str, Measured]:
        """All variants in turns."""
        return in_turns(variants, self.plan)

    def compared(self, variants: Mapping[str, Work], unit: int = 1) -> str:
        """A table of all variants beside the first, `unit` pieces in each of their units."""
        found = self.measured(variants)
        first = next(iter(found.values()))
        return table(HEAD, [_row(name, one, first, unit) for name, one in found.items()])


def _row(name: str, one: Measured, first: Measured, unit: int) -> Sequence[str]:
    low, high = one.spread(first)
    ratios = "1" if one is first else f"{one.times(first):.2f}"
    spread = "" if one is first else f"{low:.2f} to {high:.2f}"
    return name, f"{unit / one.seconds:.3g}", ratios, spread, f"{one.times_cpu(first):.2f}"


def stage2(bench: Bench) -> str:
    """Training steps of the denoiser."""
    parts = ["## Stage 2: training steps of the denoiser"]
    for size in bench.sizes:
        settings = bench.world.stage2(*size.overrides)
        millions = machine.parameters(denoiser(settings, 384))
        given = size.overrides
        variants = {
            "peers' recipe, float32": partial(peers.stage2, bench.world, "no", given),
            "peers' recipe, bf16": partial(peers.stage2, bench.world, "bf16", given),
            "ours without a cache": partial(ours.stage2, bench.world, given, False),
            "ours, AdamW in Muon's place": partial(ours.stage2, bench.world, (*given, ADAMW)),
            "ours": partial(ours.stage2, bench.world, given),
        }
        title = "The demo's U-Net" if size.name == "demo" else "U-Net"
        parts += [f"{title} of {millions:.1f} M parameters, {size.shown}:", bench.compared(variants)]
    return "\n\n".join(parts)


SETTINGS = {
    "as configured": (),
    "AdamW for all": (ADAMW,),
    "Muon on whole weights": ("optim.muon.block=null",),
    "Muon on blocks of 64": ("optim.muon.block=64",),
    "float32": ("train.precision=no",),
    "channels-last": ("train.channels_last=true",),
    "attention by torch's SDPA": ("train.attention=sdpa",),
    "activations made again (train.checkpointing)": ("train.checkpointing=true",),
    "compiled blocks (train.compile)": ("train.compile=true",),
}


def settings(bench: Bench) -> str:
    """What single settings do to a training step of stage 2."""
    size = bench.size
    half = {"half the pictures at once (train.micro_batch)": (f"train.micro_batch={size.batch // 2}",)}
    wanted = {name: (*size.overrides, *given) for name, given in (SETTINGS | half).items()}
    found = bench.measured({name: partial(ours.stage2, bench.world, given) for name, given in wanted.items()})
    usual, head = found["as configured"], ("", "milliseconds", *HEAD[2:], "first step, s", "most memory, GB")
    rows = []
    for name, one in found.items():
        *_, times, spread, cpu = _row(name, one, usual, 1)
        shown = f"{1e3 * one.seconds:.0f}", times, spread, cpu, f"{one.first:.0f}", f"{one.memory / 1e9:.1f}"
        rows.append((name, *shown))
    title = (
        f"## What single settings do\n\nStage 2, U-Net {size.shown}, one thing changed in each row; the first step is "
        "timed with all that opens:"
    )
    return f"{title}\n\n{table(head, rows)}"


def stage1(bench: Bench) -> str:
    """Training steps of the autoencoder."""
    size = ("train.batch_size=4",) if bench.quick else ()
    parts = ["## Stage 1: training steps of the autoencoder"]
    for title, given in {
        "The demo's losses (no game), batch 8:": size,
        "With a discriminator, both players in each step (theirs move in turns: a unit is two steps):": (
            *size,
            GAME,
            JUDGE,
        ),
    }.items():
        variants = {
            "peers' recipe, float32": partial(peers.stage1, bench.world, "no", given),
            "peers' recipe, bf16": partial(peers.stage1, bench.world, "bf16", given),
            "ours, AdamW in Muon's place": partial(ours.stage1, bench.world, (*given, ADAMW)),
            "ours": partial(ours.stage1, bench.world, given),
        }
        parts += [title, bench.compared(variants)]
    return "\n\n".join(parts)


def sampling(bench: Bench) -> str:
    """Pictures a second."""
    steps, count = (2, 2) if bench.quick else (15, 16)
    wish = SamplingOptions(steps=steps, solver="dpm++", guidance_scale=2.0)
    few = replace(bench, plan=replace(bench.plan, steps=1, warmup=1))
    parts = [f"## Sampling: pictures\n\nDPM++ with {steps} steps, guidance 2, {count} pictures in a batch."]
    for size in bench.sizes[:2]:
        world = bench.world.drawing(size.name, *size.overrides)
        variants = {
            "diffusers, float32": partial(peers.drawing, world, wish, count, False),
            "diffusers, bf16 autocast": partial(peers.drawing, world, wish, count, True),
            "ours, float32": partial(ours.drawing, world, wish, count, None),
            "ours, bf16": partial(ours.drawing, world, wish, count, torch.bfloat16),
        }
        parts += [f"U-Net {size.wide}:", few.compared(variants, count)]
    return "\n\n".join(parts)


def machine_share(bench: Bench) -> str:
    """Achieved operations a second beside what the machine reaches in the same run."""
    size = bench.size
    settings, first = bench.world.stage2(*size.overrides), ("train.batch_size=4",) if bench.quick else ()
    flops = {
        "matrix product, bf16": machine.MATRIX_FLOPS,
        "convolution, bf16": machine.CONVOLUTION_FLOPS,
        "matrix product, float32": machine.MATRIX_FLOPS,
        "our training step": machine.step_flops(settings, 384),
        "our training step of stage 1": machine.autoencoder_flops(bench.world.stage1(*first)),
    }
    works: list[Work] = [
        partial(machine.matrices, torch.bfloat16),
        partial(machine.convolutions, torch.bfloat16),
        partial(machine.matrices, torch.float32),
        partial(ours.stage2, bench.world, size.overrides),
        partial(ours.stage1, bench.world, first),
    ]
    found = bench.measured(dict(zip(flops, works, strict=True)))
    best = found["matrix product, bf16"]
    rows = []
    for name, one in found.items():
        share = flops[name] / flops["matrix product, bf16"] * best.seconds / one.seconds
        cpu = flops[name] / flops["matrix product, bf16"] * one.times_cpu(best)
        rows.append((name, f"{flops[name] / one.seconds / 1e9:.0f}", f"{100 * share:.0f} %", f"{100 * cpu:.0f} %"))
    head = ("", "GFLOP/s", "of the bf16 matrix product", "... in processor time")
    title = (
        f"## Share of the machine\n\nA step of a U-Net {size.shown} is {flops['our training step'] / 1e9:.0f} GFLOP "
        f"(matrix products and convolutions, forward and backward), one of the demo's autoencoder "
        f"{flops['our training step of stage 1'] / 1e9:.1f} (the perceptual distance not counted):"
    )
    return f"{title}\n\n{table(head, rows)}"


def pixels(bench: Bench) -> str:
    """Beside denoising-diffusion-pytorch, at about as many parameters."""
    title = "## Pixels: training steps beside denoising-diffusion-pytorch"
    batch = 4 if bench.quick else 16
    given = ("unet={widths: [64, 128, 256], attention: [false, false, true], layers: 1, head_size: 32}",)
    given = (*given, f"train.batch_size={batch}", "prediction_type=v", "flip=true")
    variants = {
        "denoising-diffusion-pytorch, float32": partial(strangers.pixels, bench.world, batch, "no"),
        "... with amp, bf16": partial(strangers.pixels, bench.world, batch, "bf16"),
        "ours, bf16": partial(ours.pixels, bench.world, given),
    }
    theirs, mine = machine.parameters(strangers.network()), ours.pixel_parameters(given)
    about = (
        f"Unconditional, 32 px, batch {batch}; their U-Net has {theirs:.1f} M parameters, ours {mine:.1f} M. The nets "
        "differ (theirs attends at every level), so this compares recipes as they come."
    )
    return f"{title}\n\n{about}\n\n{bench.compared(variants)}"
