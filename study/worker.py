"""Ray Train runs one trial on several workers, or on GPUs; Ray Tune sees its metrics."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.tune.integration.ray_train import TuneReportCallback

from mmjsd.batches import Workers
from study import store
from study.mirror import Mirror
from study.record import Trial, is_disk_full, record, record_end

MAX_FAILURES = 2
"""How often lost workers are replaced; all go on from the trial's last checkpoint."""

LOST = "lost_s"
"""Of a report: seconds that workers which vanished had trained since the report before their end."""


def train_on_workers(trials: list[Trial], workers: int, gpus_per_worker: float, mirror: Mirror) -> None:
    """Run a pack by one worker, or a trial by several; called by the trial's driver, within Ray Tune.

    Args:
        trials: what to train, as one.
        workers: processes, each with its rows of every batch.
        gpus_per_worker: 0 trains on CPUs, one for each worker.
        mirror: brings what is written to where the study is kept.
    """
    resources = {"GPU": gpus_per_worker} if gpus_per_worker > 0 else {"CPU": 1.0}
    reports = _Reports()
    trainer = TorchTrainer(
        _train,
        train_loop_config={"trials": trials, "mirror": mirror},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=trials[0].trial_id,
            storage_path=str(trials[0].out / "train"),
            callbacks=[reports, _Attempts(reports)],
            failure_config=ray.train.FailureConfig(
                max_failures=MAX_FAILURES, controller_failure_limit=MAX_FAILURES
            ),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # whatever the workers raised; the study goes on
        if is_disk_full(error):
            raise
        for trial in trials:
            mirror.ended(trial.trial_id)
            if store.read_trial(trial.out, trial.trial_id) is None:
                record_end(trial, "FAILED", f"{type(error).__name__}: {error}")
                mirror.push_row(trial.trial_id)


class _Reports(TuneReportCallback):  # type: ignore[misc]
    """Passes reports on to Ray Tune, with what was lost until then; in the process that watches workers."""

    def __init__(self) -> None:
        super().__init__()
        self.last: float | None = None
        """When all was safe; none while there are no workers, whose start is no loss."""

        self.lost_s = 0.0

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """A report without values only says that all is safe until now."""
        self.last = time.monotonic()
        if metrics[0]:
            super().after_report(run_context, [metrics[0] | {LOST: self.lost_s}], checkpoint)


class _Attempts(WorkerGroupCallback):  # type: ignore[misc]
    """Notes what is lost with each group of workers. Ray's public callbacks do not hear of a preemption."""

    def __init__(self, reports: _Reports) -> None:
        self._reports = reports

    def after_worker_group_start(self, _: Any) -> None:
        self._reports.last = time.monotonic()

    def before_worker_group_shutdown(self, _: Any) -> None:
        self._ended()

    def after_worker_group_abort(self, _: Any) -> None:
        self._ended()

    def _ended(self) -> None:
        if self._reports.last is not None:
            self._reports.lost_s += time.monotonic() - self._reports.last
        self._reports.last = None


def train_mirrored(
    trials: Sequence[Trial],
    device: torch.device | str,
    report: Callable[[dict[str, Any]], None],
    mirror: Mirror,
    is_warned: Callable[[], bool] | None = None,
) -> None:
    """Run trials from where the study is kept, and bring what they write there: each epoch, and their end."""
    leads = Workers.current().rank == 0

    def bring() -> None:
        for trial in trials if leads else ():
            mirror.push_trial(trial.trial_id)

    for trial in trials:
        mirror.fetch_trial(trial.trial_id)
    record(trials, device, report, bring, is_warned)


def _train(config: dict[str, Any]) -> None:
    train_mirrored(config["trials"], get_device(), ray.train.report, config["mirror"], _is_preempted)


def _is_preempted() -> bool:
    """Whether Ray knows that the node of one of the workers is about to go; all workers ask at once."""
    return ray.train.get_preemption_info() is not None
