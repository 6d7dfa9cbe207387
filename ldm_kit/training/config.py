"""The config section `train`: length, batch size, precision, checkpoints, and limits on repeated failures."""

from typing import Literal

from pydantic import AliasChoices, Field, field_validator

from ldm_kit.config import Config, Precision


class TrainConfig(Config):
    """The config section `train`: length, batch size, precision, checkpoints, and limits on repeated failures."""

    steps: int = Field(gt=0, description="optimiser steps of the whole run")
    batch_size: int = Field(gt=0, description="pictures per optimiser step over all processes (the global batch)")
    micro_batch: int | None = Field(
        default=None, gt=0, description="most pictures at once in a process, halved when memory runs out; null: all"
    )
    eval_batch: int | None = Field(
        default=None,
        gt=0,
        description="most pictures at once where nothing is trained (latents, codes, samples, evaluations); halved if "
        "memory runs out; null: 64 pictures, or fewer if these are larger than 181 px (8 of 512 px)",
    )
    precision: Precision = Field(
        default="no",
        description="autocast precision; weights stay float32; auto: bf16 where the device computes it natively",
    )
    attention: Literal["auto", "sdpa", "math", "xformers"] = Field(
        default="auto",
        description="kernel of attention; auto: math on a CPU, else sdpa; xformers: torch's own if that cannot be used",
    )
    channels_last: bool | None = Field(
        default=None,
        description="memory layout of the networks; null: what the environment variable LDM_KIT_CHANNELS_LAST (0 or 1) "
        "says, else channels-last on CPUs with AMX, where it is fast",
    )
    norms: Literal["auto", "float32"] = Field(
        default="auto",
        description="output of GroupNorm and LayerNorm under autocast; auto: in 16 bits; float32: takes more memory. "
        "Mean and variance are float32 in any case",
    )
    deterministic: bool = Field(
        default=False,
        description="only algorithms that repeat their sums bit for bit, so that a run resumed on a GPU equals an "
        "uninterrupted one; slower. On a CPU the usual ones do",
    )
    tf32: bool = Field(
        default=False,
        description="compute float32 matrix products in TF32 (10 bits of mantissa) on an NVIDIA GPU: faster without "
        "autocast; convolutions use it in any case",
    )
    compile: bool = Field(
        default=False, description="have torch compile residual and transformer blocks; the first steps take minutes"
    )
    checkpointing: bool = Field(
        default=False, description="compute activations again in the backward pass: less memory, more time"
    )
    workers: int = Field(default=0, ge=0, description="data-loader processes; 0 is best for sets that lie in memory")
    checkpoint_every: int = Field(
        default=1000, gt=0, description="steps between checkpoints; the last step always has one"
    )
    keep_last: int = Field(
        validation_alias=AliasChoices("keep_last", "keep"),
        default=2,
        ge=1,
        description="how many of the newest checkpoints stay",
    )
    keep_best: str | None = Field(
        default=None,
        description="metric whose best checkpoint stays, such as heldout_loss or heldout_psnr; of a metric that the "
        "kit does not know, lower is better, and of max:NAME higher; null: none",
    )
    save_attempts: int = Field(default=3, ge=1, description="failed saves in a row after which the run stops")
    max_skips: int = Field(default=50, ge=1, description="fp16: overflowing steps in a row after which the run stops")
    overlap: bool = Field(
        default=False,
        description="average gradients during the backward pass: faster over slow links, but memory that runs out on "
        "one process then stops the run",
    )

    @field_validator("keep_best")
    @classmethod
    def _names_a_figure(cls, figure: str | None) -> str | None:
        if figure is not None and not figure.removeprefix("max:").isidentifier():
            raise ValueError("expected the name of a figure, such as heldout_loss, or max:NAME where higher is better")
        return figure
