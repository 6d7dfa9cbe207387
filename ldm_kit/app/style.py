"""Colours, type and layout of the page; nothing is loaded from other hosts."""

import gradio as gr

CSS = """
.gradio-container {max-width: none !important; padding: 0 !important}
.gradio-container main {width: 100% !important; max-width: 1360px !important; box-sizing: border-box}
.gradio-container main {margin: 0 auto; padding: 16px 28px 24px !important}
#head {align-items: center; gap: 24px}
#title h1 {font-size: 1.5rem; font-weight: 650; letter-spacing: -.01em; margin: 0}
#title p {margin: 2px 0 0; color: var(--body-text-color-subdued); font-size: .9rem}
#head .form {max-width: 420px; min-width: 320px !important; margin-left: auto}
.controls {gap: 10px}
.run {min-height: 44px; font-weight: 600}
.note {min-height: 20px; font-size: .88rem; color: var(--body-text-color-subdued)}
.pictures img, .history img {image-rendering: pixelated}
.pictures .caption-label, .history .caption-label {font-size: .72rem; padding: 1px 6px; max-width: 100%}
.pictures .wrap:has(> .error), .pictures .wrap:has(> .error) * {display: none !important}
.pictures .thumbnail-item, .history .thumbnail-item {box-shadow: none; border-radius: 6px}
.history .grid-container {grid-template-columns: repeat(auto-fill, 104px) !important; gap: 8px}
.history-detail {font-size: .88rem; color: var(--body-text-color-subdued)}
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
