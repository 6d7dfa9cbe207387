"""Markdown tables of the GPU plan's figures."""

from collections.abc import Mapping
from typing import Any

from benchmarks.tables import markdown

Results = Mapping[str, Mapping[str, Any]]


def page(results: Results) -> str:
    """Return the tables of all sections that have figures; a section that failed says why."""
    makers = {
        "peak": _peak, "tests": _tests, "stage2": _stage2, "stage1": _stage1, "sampling": _sampling,
        "settings": _settings, "faces": _faces,
    }  # fmt: skip
    parts = [f"{name}: {results[name]['error']}" if "error" in results[name] else make(results) for name, make in
             makers.items() if name in results]  # fmt: skip
    return "\n\n".join(parts)


def _peak(results: Results) -> str:
    figures = results["peak"]
    return (
        f"{figures['device']}, torch {figures['torch']}: bf16 product {figures['product_flops'] / 1e12:.0f} TFLOP/s, "
        f"bf16 convolution {figures['convolution_flops'] / 1e12:.0f} TFLOP/s, "
        f"copy {figures['copy_bytes'] / 1e9:.0f} GB/s."
    )


def _tests(results: Results) -> str:
    figures = results["tests"]
    return "\n".join([f"Tests marked gpu: {figures['summary']}", *figures["failed"]])


def _stage2(results: Results) -> str:
    return _table("Stage 2: training steps of Stable Diffusion 1's U-Net", results, "stage2")


def _stage1(results: Results) -> str:
    return _table("Stage 1: training steps of kl-f8 with a discriminator", results, "stage1")


def _settings(results: Results) -> str:
    return _table("What single settings do, U-Net `micro`", results, "settings")


def _table(title: str, results: Results, name: str) -> str:
    """Return a table of training steps: milliseconds, samples a second, ratio, memory, share of the bf16 product."""
    figures = results[name]
    variants, batch = figures["variants"], figures["batch"]
    peak = results.get("peak", {}).get("product_flops")
    first = next((v["seconds"] for v in variants.values() if "seconds" in v), None)
    rows = []
    for variant, values in variants.items():
        if first is None or "seconds" not in values:
            rows.append((variant, values["error"].splitlines()[0], *[""] * 5))
            continue
        seconds = values["seconds"]
        share = f"{100 * figures['flops'] / seconds / peak:.0f} %" if peak and "flops" in figures else ""
        rate, times = f"{batch / seconds:.0f}", f"{first / seconds:.2f}"
        rows.append((variant, f"{1e3 * seconds:.1f}", rate, times, f"{values['memory'] / 1e9:.1f}", share,
                     f"{values['first']:.0f}"))  # fmt: skip
    head = (
        "",
        "ms a step",
        "pictures a second",
        "times the first row",
        "memory, GB",
        "of the bf16 product",
        "first step, s",
    )
    return f"### {title}, batch {batch}\n\n{markdown(head, rows)}"


def _sampling(results: Results) -> str:
    figures = results["sampling"]
    first = next((v["seconds"] for v in figures["variants"].values() if "seconds" in v), None)
    rows = []
    for variant, values in figures["variants"].items():
        if first is None or "seconds" not in values:
            rows.append((variant, values["error"].splitlines()[0], "", "", ""))
            continue
        rows.append((variant, f"{values['seconds']:.2f}", f"{figures['pictures'] / values['seconds']:.2f}",
                     f"{first / values['seconds']:.2f}", f"{values['memory'] / 1e9:.1f}"))  # fmt: skip
    head = ("", "seconds a batch", "pictures a second", "times the first row", "memory, GB")
    title = f"### Sampling: {figures['pictures']} pictures, DPM++ with {figures['steps']} steps and guidance"
    return f"{title}\n\n{markdown(head, rows)}"


def _faces(results: Results) -> str:
    figures = results["faces"]
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in figures["seconds"].items())
    text = "\n".join(line for line in figures["text"].splitlines() if not line.startswith("==="))
    return f"### Faces of 128 px: {times}\n\n{text.strip()}"
