"""Colours, type and layout of the page; nothing is loaded from other hosts."""

import gradio as gr

CSS = """
.gradio-container {max-width: 1320px !important; margin: 0 auto !important; padding: 18px 28px 28px !important}
#head {align-items: center; gap: 24px; margin-bottom: 4px}
#title h1 {font-size: 1.55rem; font-weight: 650; letter-spacing: -.01em; margin: 0}
#title p {margin: 2px 0 0; color: var(--body-text-color-subdued); font-size: .92rem}
.controls {gap: 12px}
.seed {gap: 6px !important}
.run {min-height: 46px; font-weight: 600}
.note {min-height: 22px; font-size: .9rem; color: var(--body-text-color-subdued)}
.pictures img {image-rendering: pixelated}
.strip img, .history img {image-rendering: pixelated}
.history-detail {font-size: .9rem}
footer {display: none !important}
"""


def theme() -> gr.themes.Base:
    """Return the page's theme, whose fonts are those of the system."""
    return gr.themes.Base(
        primary_hue="indigo",
        secondary_hue="indigo",
        neutral_hue="slate",
        radius_size="md",
        font=["ui-sans-serif", "system-ui", "Segoe UI", "Helvetica", "Arial", "sans-serif"],
        font_mono=["ui-monospace", "Menlo", "Consolas", "monospace"],
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_label_text_weight="500",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_text_color="white",
        slider_color="*primary_500",
    )
