"""The page: a list of models, the tabs of the chosen one, the pictures of the last request, and a history."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component

from ldm_kit.app.errors import PageError, Stopped, page_errors
from ldm_kit.app.jobs import Jobs
from ldm_kit.app.models import ModelLibrary, OpenModel
from ldm_kit.app.panel import Panel, build_panel, shown, thumbnails
from ldm_kit.app.results import Result, Workspace, remove
from ldm_kit.app.tabs.base import Tab
from ldm_kit.app.tabs.edit import EditTab
from ldm_kit.app.tabs.inpaint import InpaintTab
from ldm_kit.app.tabs.mix import InterpolateTab, MixTab
from ldm_kit.app.tabs.prior import PriorTab
from ldm_kit.app.tabs.reprompt import Img2ImgTab, RepromptTab
from ldm_kit.app.tabs.sample import SampleTab

TABS: tuple[type[Tab], ...] = (
    SampleTab,
    PriorTab,
    EditTab,
    InterpolateTab,
    MixTab,
    InpaintTab,
    RepromptTab,
    Img2ImgTab,
)
"""The tabs, in their order on the page."""

_ALONE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
"""Of events that use a model: one at a time, of all browsers."""
_SWEEP, _KEPT_FOR = 3600, 12 * 3600  # seconds: how often old uploads are removed, and how old they are then
_AT_ONCE: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


@dataclass(eq=False)
class Page:
    """The page of a library of models."""

    library: ModelLibrary
    workspace: Workspace
    jobs: Jobs = field(init=False)

    def __post_init__(self) -> None:
        self.jobs = Jobs(self.workspace.root)

    def build(self) -> gr.Blocks:
        """Return the page as Gradio serves it."""
        with gr.Blocks(
            title="ldm_kit", analytics_enabled=False, fill_width=True, delete_cache=(_SWEEP, _KEPT_FOR)
        ) as blocks:
            self._build(blocks)
        return blocks

    def _build(self, blocks: gr.Blocks) -> None:
        names = self.library.names
        self._results = gr.State([], delete_callback=remove)
        self._picked = gr.State(None)
        with gr.Row(elem_id="head"):
            gr.Markdown("# ldm_kit\nSample and edit with your own latent diffusion models", elem_id="title")
            self._model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model", interactive=True)
        with gr.Tabs(elem_id="tabs") as self._tabs:
            self._panels = [build_panel(kind()) for kind in TABS]
        self._build_history()
        for panel in self._panels:
            self._wire(panel)
        choose: dict[str, Any] = {"fn": self._choose, "inputs": self._model, "outputs": self._chosen_outputs, **_ALONE}
        blocks.load(**choose, show_progress="minimal", show_progress_on=self._model)
        self._model.input(**choose, show_progress="minimal", show_progress_on=self._model)
        blocks.unload(self._leave)

    def _build_history(self) -> None:
        with gr.Accordion("History", open=True, elem_id="history-box"):
            self._history = gr.Gallery(
                show_label=False,
                elem_id="history",
                elem_classes="history",
                columns=12,
                height=128,
                object_fit="contain",
                allow_preview=False,
                interactive=False,
                buttons=[],
                format="png",
            )
            with gr.Row(equal_height=True):
                self._detail = gr.Markdown(
                    "What you make appears here; choose one to see and restore its settings.",
                    elem_id="detail",
                    elem_classes="history-detail",
                )
                self._restore = gr.Button(
                    "Restore settings", visible=False, size="sm", scale=0, min_width=160, elem_id="restore"
                )
        self._history.select(
            self._pick, self._results, [self._picked, self._detail, self._restore], show_progress="hidden", queue=False
        )
        self._restore.click(self._restored, [self._results, self._picked], self._restore_outputs, **_ALONE)

    @property
    def _every_field(self) -> list[Component]:
        return [component for panel in self._panels for component in panel.fields.values()]

    @property
    def _chosen_outputs(self) -> list[Any]:
        return [self._tabs, *(panel.item for panel in self._panels), *self._every_field]

    @property
    def _restore_outputs(self) -> list[Any]:
        ends = [each for panel in self._panels for each in (panel.pictures, panel.note, panel.download)]
        return [self._model, *self._chosen_outputs, *ends]

    def _wire(self, panel: Panel) -> None:
        controls = [panel.button, panel.stop]
        outputs = [panel.pictures, panel.note, panel.download, self._results, self._history]
        inputs = {self._model, self._results, *panel.fields.values()}

        def begin(request: gr.Request) -> tuple[Any, Any]:
            self.jobs.begin(request.session_hash or "")
            return gr.Button(visible=False), gr.Button(visible=True)

        def run(data: dict[Component, Any], request: gr.Request, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
            values = {name: data[component] for name, component in panel.fields.items()}
            return self._run(panel, data, values, (request.session_hash or "", progress))

        ran = panel.button.click(begin, None, controls, **_AT_ONCE).then(
            run, inputs, outputs, show_progress="full", show_progress_on=panel.pictures, **_ALONE
        )
        for ended in (ran.then, ran.failure):
            ended(lambda: (gr.Button(visible=True), gr.Button(visible=False)), None, controls, **_AT_ONCE)
        panel.stop.click(self._stop, None, None, **_AT_ONCE)
        if panel.tab.live:
            self._wire_live(panel, run, (inputs, outputs))

    def _wire_live(self, panel: Panel, run: Callable[..., Any], ends: tuple[set[Any], list[Any]]) -> None:
        """Let the fields `live` of a tab run it; a change of the first of them first updates the fields `slots`."""
        inputs, outputs = ends
        first: Any = panel.fields[panel.tab.live[0]]

        def update(data: dict[Component, Any]) -> list[Any]:
            values = {name: data[component] for name, component in panel.fields.items()}
            new = panel.tab.slots(values, self._open(data[self._model]))
            return [gr.update(**new[name]) if name in new else gr.skip() for name in panel.fields]

        def follow(data: dict[Component, Any], request: gr.Request, progress: gr.Progress = gr.Progress()) -> Any:  # noqa: B008
            if not panel.tab.is_live({name: data[component] for name, component in panel.fields.items()}):
                return (gr.skip(),) * len(outputs)
            self.jobs.begin(request.session_hash or "")
            return run(data, request, progress)

        on_pictures: dict[str, Any] = {"show_progress": "full", "show_progress_on": panel.pictures, **_ALONE}
        first.input(update, inputs, [*panel.fields.values()], **(_ALONE | {"show_progress": "hidden"})).then(
            follow, inputs, outputs, **on_pictures
        )
        others: list[Any] = [panel.fields[name] for name in panel.tab.live[1:]]
        events = [each.release if isinstance(each, gr.Slider) else each.input for each in others]
        gr.on(events, follow, inputs, outputs, trigger_mode="always_last", **on_pictures)

    def _run(
        self, panel: Panel, data: dict[Component, Any], values: dict[str, Any], caller: tuple[str, gr.Progress]
    ) -> Any:
        """Compute one request; return the values of a panel's outputs."""
        (session, progress), tab, folder = caller, panel.tab, self.workspace.new_folder()

        def work() -> Result:
            with self.library.lock:
                model = self.library.open(data[self._model])
                note = tab.run(model, values, folder, self.library.options)
                return Result(tab.title, model.name, folder, values, note, tab.key, tab.summary(values))

        def show(description: str, finished: int, total: int) -> None:
            progress((finished, total), desc=description, unit="steps")

        try:
            result = self.jobs.run(session, work, show)
        except Stopped:
            gr.Info("Stopped; no picture was written.", title="Stopped")
            return (gr.skip(),) * 5
        except PageError as error:
            raise gr.Error(str(error), print_exception=False) from None
        results = self.workspace.add(data[self._results], result)
        return (*shown(result), results, thumbnails(results))

    def _choose(self, name: str) -> list[Any]:
        """Return updates of tabs and fields for the model called `name`."""
        return self._updates(name, None)

    def _updates(self, name: str, result: Result | None) -> list[Any]:
        """Return updates of `_chosen_outputs` for a model; with a result, its tab and values are those shown."""
        model = self._open(name)
        fits = [panel.tab.available(model) for panel in self._panels]
        first = next((panel.tab.key for panel, fit in zip(self._panels, fits, strict=True) if fit), None)
        selected = result.key if result is not None else first
        updates: list[Any] = [gr.Tabs(selected=selected), *(gr.Tab(visible=fit) for fit in fits)]
        for panel, fit in zip(self._panels, fits, strict=True):
            new = panel.tab.updates(model) if fit else {}
            if result is not None and panel.tab.key == result.key:
                for each, value in result.values.items():
                    new.setdefault(each, {})["value"] = value
                for each, properties in panel.tab.slots(result.values, model).items():
                    new[each] = {**properties, **new.get(each, {}), "visible": properties.get("visible", True)}
            updates += [gr.update(**new[each]) if each in new else gr.skip() for each in panel.fields]
        return updates

    def _open(self, name: str) -> OpenModel:
        try:
            with page_errors(self.workspace.root):
                return self.library.open(name)
        except PageError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def _pick(self, results: Sequence[Result], event: gr.SelectData) -> Any:
        result = results[event.index]
        return result.folder.name, result.settings(), gr.Button(visible=True)

    def _restored(self, results: Sequence[Result], picked: str | None) -> list[Any]:
        """Return updates that show a result of the history again, with the fields as they were."""
        result = next((each for each in results if each.folder.name == picked), None)
        if result is None:
            raise gr.Error("This result is no longer in the history.", print_exception=False)
        pictures: list[Any] = []
        for panel in self._panels:
            pictures += shown(result) if panel.tab.key == result.key else [gr.skip()] * 3
        return [result.model, *self._updates(result.model, result), *pictures]

    def _stop(self, request: gr.Request) -> None:
        self.jobs.stop(request.session_hash or "")

    def _leave(self, request: gr.Request) -> None:
        self.jobs.forget(request.session_hash or "")
