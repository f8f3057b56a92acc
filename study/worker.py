"""Ray Train runs one trial on several workers, or on GPUs; Ray Tune sees its metrics."""

from typing import Any

import ray.train
from ray.train.torch import TorchTrainer, get_device
from ray.tune.integration.ray_train import TuneReportCallback

from study import store
from study.record import Trial, is_disk_full, record, record_end

MAX_FAILURES = 2
"""How often lost workers are replaced; all go on from the trial's last checkpoint."""


def train_on_workers(trials: list[Trial], workers: int, gpus_per_worker: float) -> None:
    """Run a pack by one worker, or a trial by several; called by the trial's driver, within Ray Tune.

    Args:
        trials: what to train, as one.
        workers: processes, each with its rows of every batch.
        gpus_per_worker: 0 trains on CPUs, one for each worker.
    """
    resources = {"GPU": gpus_per_worker} if gpus_per_worker > 0 else {"CPU": 1.0}
    trainer = TorchTrainer(
        _train,
        train_loop_config={"trials": trials},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers, use_gpu=gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=ray.train.RunConfig(
            name=trials[0].trial_id,
            storage_path=str(trials[0].out / "train"),
            callbacks=[TuneReportCallback()],
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
            if store.read_trial(trial.out, trial.trial_id) is None:
                record_end(trial, "FAILED", f"{type(error).__name__}: {error}")


def _train(config: dict[str, Any]) -> None:
    record(config["trials"], get_device(), ray.train.report)
