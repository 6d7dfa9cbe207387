"""Check that numbers stay finite: noted on the device without waiting for it, and named by step and component.

A NaN or an infinity anywhere ends in black pixels. Every network, gradient and state of a sampler is therefore noted.
On a CPU, where it costs nothing, a note is looked at at once, elsewhere after `POLL` notes and at the end.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_kit.config import UserError
from ldm_kit.diffusion.denoiser import Denoiser
from ldm_kit.diffusion.prediction import Prediction
from ldm_kit.diffusion.samplers import State
from ldm_kit.diffusion.schedule import Schedule

POLL = 64  # notes after which the device is waited for


class NonFiniteError(UserError):
    """A NaN or an infinity was computed; the message names the component, and the step where there is one."""


class _Note(NamedTuple):
    component: str
    run: str  # what the steps are of
    step: int  # 0: not within a sampler
    t: Tensor | None
    finite: Tensor  # bool, no dimensions

    @property
    def sentence(self) -> str:
        where = f" at step {self.step} of {self.run}" if self.step else ""
        time = "" if self.t is None else f" (time {int(self.t.flatten()[0])})"
        return (
            f"{self.component} gives numbers that are not finite (NaN or infinity){where}{time}; expected weights that "
            "are whole, and a guidance scale and a precision that stay in range. Nothing was written"
        )


@dataclass(eq=False)
class FiniteCheck:
    """The notes of one model; a model's parts note into the same object, in the order in which they compute."""

    _notes: list[_Note] = field(default_factory=list[_Note])
    _run: str = ""
    _step: int = 0

    def note(self, component: str, value: Tensor, t: Tensor | None = None) -> Tensor:
        """Note whether a component's result is finite, and return the result unchanged.

        Args:
            component: what computed it, as a sentence begins.
            value: the result.
            t: timesteps [B] that it was computed at, if any.

        Raises:
            NonFiniteError: this or an earlier note, where they are looked at.
        """
        self._notes.append(_Note(component, self._run, self._step, t, value.detach().isfinite().all()))
        if value.device.type == "cpu" or len(self._notes) >= POLL:
            self.verify()
        return value

    def network(self, component: str, network: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of (x, t, ...) to a tensor, such as a network or a gradient, whose results are noted."""

        def call(x: Tensor, t: Tensor, *rest: Any) -> Any:
            return self.note(component, network(x, t, *rest), t)

        return call

    def denoiser(self, component: str, denoiser: Denoiser) -> "CheckedDenoiser":
        """Return a denoiser whose predictions are noted."""
        return CheckedDenoiser(denoiser, self, component)

    def states(self, states: Iterator[State], run: str = "sampling") -> Iterator[State]:
        """Yield a sampler's states, note them and count its steps.

        Args:
            states: of a sampler whose denoiser notes into this object.
            run: what the steps are of, for the message.

        Raises:
            NonFiniteError: something in a step was not finite; on an accelerator at the end, when there are
                no more states.
        """
        self._run, self._step = run, 1
        try:
            for state in states:
                self.note("the sample", state.x)
                yield state
                self._step += 1
            self.verify()
        finally:
            self._notes, self._step = [], 0

    def verify(self) -> None:
        """Look at all notes, and forget them.

        Raises:
            NonFiniteError: names the first that is not finite.
        """
        notes, self._notes = self._notes, []
        if notes and not bool(torch.stack([note.finite for note in notes]).all()):
            raise NonFiniteError(next(note for note in notes if not bool(note.finite)).sentence)


@dataclass(frozen=True, eq=False)
class CheckedDenoiser:
    """A denoiser whose predictions a `FiniteCheck` notes as those of a component."""

    inner: Denoiser
    check: FiniteCheck
    component: str

    @property
    def schedule(self) -> Schedule:
        """Noise schedule of the inner denoiser."""
        return self.inner.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p = self.inner(x, t, cond)
        self.check.note(self.component, p.x_0, t)
        self.check.note(self.component, p.eps, t)
        return p


def check_finite(component: str, value: Tensor) -> Tensor:
    """Return a result unchanged, once it is known to be finite; waits for the device.

    Raises:
        NonFiniteError: it is not.
    """
    check = FiniteCheck()
    check.note(component, value)
    check.verify()
    return value
