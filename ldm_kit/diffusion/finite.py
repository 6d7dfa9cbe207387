"""Check during sampling that all numbers are finite, without making the CPU wait for the accelerator at every step.

A NaN or an infinity anywhere in sampling would end in black pixels. So every network output, guidance gradient and
sampler state leaves a note on its device: whether all its numbers are finite. The CPU reads the notes at once if the
device is the CPU, else after every `POLL` notes and when sampling ends. The error names the component and the step.
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

POLL = 64  # number of records on an accelerator after which they are read, which waits for the accelerator


class NonFiniteError(UserError):
    """Raised for a NaN or an infinity; the message names the component that computed it and the sampling step."""


class _Note(NamedTuple):
    component: str  # which network, gradient or state the result is of
    run: str  # what the steps belong to, such as "sampling"
    step: int  # sampling step, from 1; 0: not within a sampler
    t: Tensor | None  # timesteps [B]
    finite: Tensor  # bool scalar: whether all of the result is finite

    @property
    def sentence(self) -> str:
        where = f" at step {self.step} of {self.run}" if self.step else ""
        time = "" if self.t is None else f" (time {int(self.t.flatten()[0])})"
        return (
            f"{self.component} gives numbers that are not finite (NaN or infinity){where}{time}; expected weights that "
            "are whole, and a guidance scale and a precision that stay in range. Of this batch nothing was written"
        )


@dataclass(eq=False)
class FiniteCheck:
    """Checks that the results of a model's networks and samplers are finite; all networks of a model share one object.

    Whether a result is finite is computed at once on the result's device. The CPU reads this later, after every `POLL`
    results and at the end of sampling, so that it need not wait for the accelerator at every step.
    """

    _notes: list[_Note] = field(default_factory=list[_Note])  # results that were noted but not read yet
    _run: str = ""  # what the steps belong to, such as "sampling"
    _step: int = 0  # present sampling step, from 1; 0: not within a sampler

    def note(self, component: str, value: Tensor, t: Tensor | None = None) -> Tensor:
        """Note, for a later check, whether a component's result is finite; return the result unchanged.

        Args:
            component: what computed the result, as the subject of the error's sentence, such as "the U-Net".
            value: the result, a tensor of any shape.
            t: timesteps [B] at which the result was computed; None: it belongs to no timestep.

        Raises:
            NonFiniteError: this or an earlier result is not finite. On an accelerator the error comes late, because
                results are read only when `POLL` of them are noted.
        """
        self._notes.append(_Note(component, self._run, self._step, t, value.detach().isfinite().all()))
        if value.device.type == "cpu" or len(self._notes) >= POLL:
            self.verify()
        return value

    def network(self, component: str, network: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function of (x, t, ...) to a tensor, such as a network or a gradient, so that its results are checked.

        `component` names the function in errors, see `note`.
        """

        def call(x: Tensor, t: Tensor, *rest: Any) -> Any:
            return self.note(component, network(x, t, *rest), t)

        return call

    def denoiser(self, component: str, denoiser: Denoiser) -> "CheckedDenoiser":
        """Wrap a denoiser so that its predictions are checked; `component` names it in errors, see `note`."""
        return CheckedDenoiser(denoiser, self, component)

    def states(self, states: Iterator[State], run: str = "sampling") -> Iterator[State]:
        """Yield a sampler's states, check them and count the sampler's steps for the error's message.

        Args:
            states: states of a sampler whose denoiser is wrapped by this object.
            run: what the steps belong to, for the error's message ("at step 3 of sampling").

        Raises:
            NonFiniteError: a result in a step is not finite; on an accelerator this may be raised steps later, at the
                latest after the last state.
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
        """Read and discard all notes of whether results are finite; this waits for the accelerator.

        Raises:
            NonFiniteError: a noted result is not finite; the message names the first one's component and step.
        """
        notes, self._notes = self._notes, []
        if notes and not bool(torch.stack([note.finite for note in notes]).all()):
            raise NonFiniteError(next(note for note in notes if not bool(note.finite)).sentence)


@dataclass(frozen=True, eq=False)
class CheckedDenoiser:
    """A denoiser whose predictions are checked to be finite.

    Args:
        inner: the denoiser whose predictions are checked.
        check: the object that notes and reads whether results are finite.
        component: name of the denoiser in error messages, such as "the U-Net".
    """

    inner: Denoiser
    check: FiniteCheck
    component: str

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the wrapped denoiser."""
        return self.inner.schedule

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Prediction:
        p = self.inner(x, t, cond)
        self.check.note(self.component, p.x_0, t)
        self.check.note(self.component, p.eps, t)
        return p


def check_finite(component: str, value: Tensor) -> Tensor:
    """Check that a result is finite, waiting for the accelerator if the result is there; return it unchanged.

    Args:
        component: what computed the result, as the subject of the error's sentence, such as "the U-Net".
        value: the result, a tensor of any shape.

    Raises:
        NonFiniteError: the result is not finite.
    """
    check = FiniteCheck()
    check.note(component, value)
    check.verify()
    return value
