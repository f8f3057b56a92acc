"""What a study is doing, live on the terminal: done, running, best so far, time left."""

import sys
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Column, Table
from rich.text import Text

from study import store
from study.config import FIRST_FRESH
from study.record import Trial


class Display:
    """A live view on standard error; silent when that is no terminal.

    Args:
        name: the study's.
        num_trials: that are to be trained now.
        epochs: of each trial.
        metric: the objective that is shown.
    """

    def __init__(self, name: str, num_trials: int, epochs: int, metric: str) -> None:
        self._metric = metric
        self._console = console = Console(stderr=True, markup=False, emoji=False)
        self._epochs, self._epochs_left = epochs, num_trials * epochs
        self._expected = num_trials
        self._started = time.monotonic()
        self._epochs_done = 0
        self._states: dict[str, int] = {}
        self._best: tuple[float, str] | None = None
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=4, no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            expand=True,  # so that a narrow terminal cuts names and bars, and no numbers
        )
        self._study = self._progress.add_task(name, total=num_trials, note="")
        self._tasks: dict[str, TaskID] = {}
        self._reached: dict[str, int] = {}
        """The last epoch of each that runs, which may have gone on from another session's."""

        self._live = Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=4,
            transient=False,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._shown = console.is_terminal

    def __enter__(self) -> "Display":
        self._started = time.monotonic()  # Ray's start is no part of what an epoch takes
        if self._shown:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was; its last picture stays."""
        if self._shown:
            self._live.stop()

    def expect(self, num_missing: int) -> None:
        """So many trials have yet to end: fewer than was thought where a sampler repeats a config."""
        expected = sum(self._states.values()) + num_missing
        self._epochs_left += (expected - self._expected) * self._epochs
        self._expected = expected
        self._progress.update(self._study, total=expected)

    def started(self, trial: Trial) -> None:
        """A trial starts, or goes on after its process was replaced."""
        name = trial.trial_id
        if name not in self._tasks:
            number = f"replicate {trial.replicate + 1}"
            if trial.phase == "confirm":
                number = f"fresh replicate {trial.replicate - FIRST_FRESH + 1}"
            text = f"  {_swept(trial) or 'base config'}, {number}"
            epochs = trial.config.training.epochs
            self._epochs_left += epochs - self._epochs
            self._tasks[name] = self._progress.add_task(text, total=epochs, note="starting")

    def progressed(self, trial: Trial, epoch: int, value: float | None) -> None:
        """A trial has ended an epoch; `value` is its objective, where that was measured."""
        name = trial.trial_id
        self._epochs_done += 1
        self._epochs_left -= epoch - self._reached.get(name, 0)
        self._reached[name] = epoch
        self._progress.update(self._tasks[name], completed=epoch)
        if value is not None:
            self._progress.update(self._tasks[name], note=f"{self._metric} {value:.3f}")

    def ended(self, trial: Trial) -> None:
        """A trial has ended in whatever way; the tables know which. One that went wrong is told at once."""
        task = self._tasks.pop(trial.trial_id, None)
        if task is not None:
            self._progress.remove_task(task)
        row = store.read_trial(trial.out, trial.trial_id)
        if row is None:  # it was interrupted, and goes on another time
            return
        self._epochs_left -= trial.config.training.epochs - self._reached.pop(trial.trial_id, 0)
        state, value = row["state"], row["objective_value"]
        if state in ("DIVERGED", "FAILED"):
            error = row["error"].strip().splitlines()
            reason = error[-1] if error else "no reason known"
            self._console.print(Text(f"{trial.trial_id} {state}: {reason}"), soft_wrap=True)
        self._states[state] = self._states.get(state, 0) + 1
        if value is not None and (self._best is None or value > self._best[0]):
            self._best = (value, _swept(trial))
        self._progress.update(self._study, completed=sum(self._states.values()))

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 2))
        states = ", ".join(f"{count} {state.lower()}" for state, count in sorted(self._states.items()))
        table.add_row("ended", states or "none yet")
        if self._best is not None:
            value, swept = self._best
            with_fields = f" with {swept}" if swept else ""
            table.add_row("best", f"{self._metric} {value:.3f} on validation{with_fields}")
        table.add_row("time", f"{_duration(time.monotonic() - self._started)} so far{self._left()}")
        return Group(self._progress, table, Text(""))

    def _left(self) -> str:
        if self._progress.finished:
            return ""
        if self._epochs_done < 1:
            return ", time left not known yet" if self._tasks else ""
        rate = (time.monotonic() - self._started) / self._epochs_done
        return f", about {_duration(rate * max(0, self._epochs_left))} left"


def _swept(trial: Trial) -> str:
    return ", ".join(f"{path.split('.', 1)[-1]} {_short(value)}" for path, value in trial.params.items())


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, (tuple, list)):
        return " ".join(f"{each:.2f}" for each in value)
    return str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
