"""The components of one tab, and what they show of a result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from ldm_kit.app.results import Result
from ldm_kit.app.tabs.base import Tab


@dataclass(eq=False)
class Panel:
    """The components of one tab."""

    tab: Tab
    item: gr.Tab
    fields: dict[str, Component]
    button: gr.Button
    stop: gr.Button
    pictures: gr.Gallery
    note: gr.Markdown
    download: gr.DownloadButton


def build_panel(tab: Tab) -> Panel:
    """Lay out one tab in the present Blocks: its fields on the left, its pictures on the right."""
    with gr.Tab(tab.title, id=tab.key, elem_id=f"tab-{tab.key}", visible=False) as item, gr.Row():
        with gr.Column(scale=5, min_width=380, elem_classes="controls"):
            fields = tab.build()
            with gr.Row():
                button = gr.Button(tab.button, variant="primary", elem_id=f"{tab.key}-run", elem_classes="run")
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id=f"{tab.key}-stop")
        with gr.Column(scale=7, min_width=420):
            pictures = gr.Gallery(
                show_label=False,
                elem_id=f"{tab.key}-pictures",
                elem_classes="pictures",
                columns=4,
                height=448,
                object_fit="contain",
                format="png",
                buttons=["download", "fullscreen"],
                interactive=False,
            )
            with gr.Row():
                note = gr.Markdown(elem_id=f"{tab.key}-note", elem_classes="note")
                download = gr.DownloadButton(
                    "Download all", visible=False, size="sm", scale=0, min_width=140, elem_id=f"{tab.key}-download"
                )
    return Panel(tab, item, fields, button, stop, pictures, note, download)


def shown(result: Result) -> list[Any]:
    """Return values of a panel's pictures, note and download."""
    pictures = result.pictures
    columns = columns_for(len(pictures))
    return [
        gr.Gallery(pictures, columns=columns, selected_index=None),
        result.note,
        gr.DownloadButton(value=result.archive(), visible=True),
    ]


def thumbnails(results: Sequence[Result]) -> gr.Gallery:
    """Return the history's pictures, none of them chosen."""
    return gr.Gallery([(result.thumbnail, result.title) for result in results], selected_index=None)


def columns_for(count: int) -> int:
    """Return the number of columns in which `count` pictures fill the panel well."""
    return next((columns for most, columns in ((2, 2), (3, 3), (8, 4), (18, 6)) if count <= most), 8)
