"""Tables of training both stages, of sampling, and of the share of the machine that a step reaches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from benchmarks import kit
from benchmarks.speed import ddpm_pytorch, machine, peers, workspace
from benchmarks.speed.interleave import Plan, Timing, Work, time_interleaved
from benchmarks.speed.workspace import Workspace
from benchmarks.tables import markdown

HEAD = ("", "a second", "times the first row", "within a block", "in processor time")
ADVERSARIAL = "loss.adversarial={start: 0}"
ADAMW = "optim.muon=null"  # the peers' optimiser: what a step costs apart from that choice
DISCRIMINATOR = "discriminator={layers: 2}"


@dataclass(frozen=True)
class Size:
    """Size of a U-Net and of a training batch."""

    name: str
    widths: tuple[int, ...]  # channels of each level of the U-Net
    batch: int  # pictures in a batch

    @classmethod
    def of(cls, name: str, config: kit.LatentRun) -> "Size":
        """Return the size of the U-Net and the batch of a run's config, under the name `name`."""
        return cls(name, tuple(config.unet.widths), config.train.batch_size)

    @property
    def overrides(self) -> tuple[str, ...]:
        """Overrides of the quick recipe, KEY=VALUE, that set this size."""
        return f"unet.widths={list(self.widths)}", f"train.batch_size={self.batch}"

    @property
    def widths_text(self) -> str:
        """The U-Net's widths in words, such as "128 and 256 channels wide"."""
        return f"{' and '.join(map(str, self.widths))} channels wide"

    @property
    def text(self) -> str:
        """The U-Net's widths and the batch in words."""
        return f"{self.widths_text}, batch {self.batch}"


MIDDLE, LARGE, QUICK = Size("middle", (128, 256), 64), Size("large", (192, 416), 16), Size("quick", (32, 64), 4)


@dataclass(frozen=True)
class Bench:
    """Settings of the speed measurements."""

    space: Workspace  # folders that all variants share
    plan: Plan  # lengths of measurements
    quick: bool = False  # whether sizes are tiny, to see that all works

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Sizes of stage 2 (the denoiser) to measure: the demo's and two larger ones; one tiny size if `quick`."""
        return (QUICK,) if self.quick else (Size.of("demo", self.space.stage2()), MIDDLE, LARGE)

    @property
    def size(self) -> Size:
        """Size of stage 2 for tables that measure only one."""
        return QUICK if self.quick else MIDDLE

    def time(self, variants: Mapping[str, Work]) -> dict[str, Timing]:
        """Time variants in turns, block by block; return their times by name."""
        return time_interleaved(variants, self.plan)

    def compare(self, variants: Mapping[str, Work], unit: int = 1) -> str:
        """Time variants, and return a Markdown table of their speed, absolute and relative to the first one's.

        `unit` is the number of steps or pictures in one unit of work.
        """
        timings = self.time(variants)
        first = next(iter(timings.values()))
        return markdown(HEAD, [_row(name, timing, first, unit) for name, timing in timings.items()])


def _row(name: str, timing: Timing, first: Timing, unit: int) -> Sequence[str]:
    low, high = timing.spread(first)
    ratios = "1" if timing is first else f"{timing.speedup(first):.2f}"
    spread = "" if timing is first else f"{low:.2f} to {high:.2f}"
    return name, f"{unit / timing.seconds:.3g}", ratios, spread, f"{timing.speedup_cpu(first):.2f}"


def stage2(bench: Bench) -> str:
    """Time training steps of the denoiser with diffusers' example script and with ldm_kit; return Markdown tables."""
    paragraphs = ["## Stage 2: training steps of the denoiser"]
    for size in bench.sizes:
        config = bench.space.stage2(*size.overrides)
        millions = machine.parameters(kit.build_denoiser(config, 384))
        given = size.overrides
        variants = {
            "peers' recipe, float32": partial(peers.train_stage2, bench.space, "no", given),
            "peers' recipe, bf16": partial(peers.train_stage2, bench.space, "bf16", given),
            "ours without a cache": partial(workspace.train_stage2, bench.space, given, False),
            "ours, AdamW in Muon's place": partial(workspace.train_stage2, bench.space, (*given, ADAMW)),
            "ours": partial(workspace.train_stage2, bench.space, given),
        }
        title = "The demo's U-Net" if size.name == "demo" else "U-Net"
        paragraphs += [f"{title} of {millions:.1f} M parameters, {size.text}:", bench.compare(variants)]
    return "\n\n".join(paragraphs)


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
    """Time training steps of the denoiser with single settings of SETTINGS changed; return a Markdown table."""
    size = bench.size
    half = {"half the pictures at once (train.micro_batch)": (f"train.micro_batch={size.batch // 2}",)}
    variants = {name: (*size.overrides, *given) for name, given in (SETTINGS | half).items()}
    timings = bench.time(
        {name: partial(workspace.train_stage2, bench.space, given) for name, given in variants.items()}
    )
    usual, head = timings["as configured"], ("", "milliseconds", *HEAD[2:], "first step, s", "most memory, GB")
    rows = []
    for name, timing in timings.items():
        *_, times, spread, cpu = _row(name, timing, usual, 1)
        opened = f"{timing.first:.0f}", f"{timing.memory / 1e9:.1f}"
        rows.append((name, f"{1e3 * timing.seconds:.0f}", times, spread, cpu, *opened))
    title = (
        f"## What single settings do\n\nStage 2, U-Net {size.text}, one thing changed in each row; the first step is "
        "timed with all that opens:"
    )
    return f"{title}\n\n{markdown(head, rows)}"


def stage1(bench: Bench) -> str:
    """Time training steps of the autoencoder with diffusers' script and with ldm_kit; return Markdown tables.

    There is a table without and one with a discriminator.
    """
    size = ("train.batch_size=4",) if bench.quick else ()
    paragraphs = ["## Stage 1: training steps of the autoencoder"]
    for title, given in {
        "The demo's losses (no discriminator), batch 8:": size,
        "With a discriminator, both modules in each step (the peers' alternate: a unit is two steps):": (
            *size,
            ADVERSARIAL,
            DISCRIMINATOR,
        ),
    }.items():
        variants = {
            "peers' recipe, float32": partial(peers.train_stage1, bench.space, "no", given),
            "peers' recipe, bf16": partial(peers.train_stage1, bench.space, "bf16", given),
            "ours, AdamW in Muon's place": partial(workspace.train_stage1, bench.space, (*given, ADAMW)),
            "ours": partial(workspace.train_stage1, bench.space, given),
        }
        paragraphs += [title, bench.compare(variants)]
    return "\n\n".join(paragraphs)


def sampling(bench: Bench) -> str:
    """Time sampling with diffusers and with ldm_kit, in float32 and bf16; return Markdown tables."""
    steps, count = (2, 2) if bench.quick else (15, 16)
    options = kit.sampling(steps=steps, solver="dpm++", guidance_scale=2.0)
    few = replace(bench, plan=replace(bench.plan, steps=1, warmup=1))
    paragraphs = [f"## Sampling: pictures\n\nDPM++ with {steps} steps, guidance 2, {count} pictures in a batch."]
    for size in bench.sizes[:2]:
        space = bench.space.with_model(size.name, *size.overrides)
        variants = {
            "diffusers, float32": partial(peers.generate, space, options, count, False),
            "diffusers, bf16 autocast": partial(peers.generate, space, options, count, True),
            "ours, float32": partial(workspace.generate, space, options, count, None),
            "ours, bf16": partial(workspace.generate, space, options, count, torch.bfloat16),
        }
        paragraphs += [f"U-Net {size.widths_text}:", few.compare(variants, count)]
    return "\n\n".join(paragraphs)


def machine_share(bench: Bench) -> str:
    """Measure the floating-point operations per second of training steps, beside those of matrix products.

    Both are timed in turns, so that the Markdown table says which share of the machine's speed a step reaches.
    """
    size = bench.size
    config, first = bench.space.stage2(*size.overrides), ("train.batch_size=4",) if bench.quick else ()
    flops = {
        "matrix product, bf16": machine.MATRIX_FLOPS,
        "convolution, bf16": machine.CONVOLUTION_FLOPS,
        "matrix product, float32": machine.MATRIX_FLOPS,
        "our training step": machine.step_flops(config, 384),
        "our training step of stage 1": machine.autoencoder_flops(bench.space.stage1(*first)),
    }
    works: list[Work] = [
        partial(machine.matrices, torch.bfloat16),
        partial(machine.convolutions, torch.bfloat16),
        partial(machine.matrices, torch.float32),
        partial(workspace.train_stage2, bench.space, size.overrides),
        partial(workspace.train_stage1, bench.space, first),
    ]
    timings = bench.time(dict(zip(flops, works, strict=True)))
    best = timings["matrix product, bf16"]
    rows = []
    for name, timing in timings.items():
        relative = flops[name] / flops["matrix product, bf16"]
        shares = relative * best.seconds / timing.seconds, relative * timing.speedup_cpu(best)
        percent = [f"{100 * share:.0f} %" for share in shares]
        rows.append((name, f"{flops[name] / timing.seconds / 1e9:.0f}", *percent))
    head = ("", "GFLOP/s", "of the bf16 matrix product", "... in processor time")
    title = (
        f"## Share of the machine\n\nA step of a U-Net {size.text} is {flops['our training step'] / 1e9:.0f} GFLOP "
        f"(matrix products and convolutions, forward and backward), one of the quick recipe's autoencoder "
        f"{flops['our training step of stage 1'] / 1e9:.1f} (the perceptual distance not counted):"
    )
    return f"{title}\n\n{markdown(head, rows)}"


def pixels(bench: Bench) -> str:
    """Time training steps on pixels with denoising-diffusion-pytorch and ldm_kit, at about as many parameters.

    Returns a Markdown table.
    """
    title = "## Pixels: training steps beside denoising-diffusion-pytorch"
    batch = 4 if bench.quick else 16
    given = (
        "unet={widths: [64, 128, 256], attention_levels: [false, false, true], layers_per_block: 1, head_size: 32}",
    )
    given = (*given, f"train.batch_size={batch}", "prediction_type=v", "flip=true")
    variants = {
        "denoising-diffusion-pytorch, float32": partial(ddpm_pytorch.train_pixels, bench.space, batch, "no"),
        "... with amp, bf16": partial(ddpm_pytorch.train_pixels, bench.space, batch, "bf16"),
        "ours, bf16": partial(workspace.train_pixels, bench.space, given),
    }
    network = kit.build_denoiser(bench.space.pixels(*given), None, side=32, channels=3)
    peer_size, size = machine.parameters(ddpm_pytorch.network()), machine.parameters(network)
    note = (
        f"Unconditional, 32 px, batch {batch}; their U-Net has {peer_size:.1f} M parameters, ours {size:.1f} M. The "
        "nets differ (theirs attends at every level), so this compares recipes as they come."
    )
    return f"{title}\n\n{note}\n\n{bench.compare(variants)}"
