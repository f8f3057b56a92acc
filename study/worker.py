"""Ray Train trains trials on several workers, or on GPUs; Ray Tune sees their metrics.

The workers that a trial's driver has started stay and train its next trials, too, so that processes, imports,
data on the device and process groups are paid for once.
"""

import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from typing import Any
from uuid import uuid4

import ray.train
import torch
from ray import tune
from ray.actor import ActorHandle
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchTrainer, get_device
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group.poll import _is_preempted_actor
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mmjsd.batches import Workers
from study import store
from study.config import ClusterError
from study.desk import ENDED, NUMBER, Desk
from study.mirror import UNSHARED, Mirror
from study.record import Trial, is_disk_full, record, record_end

MAX_FAILURES = 2
"""How often lost workers of a trial are replaced; all go on from the trial's last checkpoint. The end of a
node of which Ray was warned does not count."""

LOST = "lost_s"
"""Of a report: seconds that workers which vanished had trained since the report before their end."""

BEGUN = "begun"
"""Of a report: workers have what they need and train, which costs from now on."""

_FAILURE = "failure"
"""Of a message: why workers have ended."""


def train_on_workers(trials: list[Trial], workers: int, gpus_per_worker: float, mirror: Mirror) -> None:
    """Run a pack by one worker, or a trial by several; called by the trial's driver, within Ray Tune.

    Args:
        trials: what to train, as one.
        workers: processes, each with its rows of every batch.
        gpus_per_worker: 0 trains on CPUs, one for each worker.
        mirror: brings what is written to where the study is kept.
    """
    failures: list[str] = []
    lost_s = 0.0
    while len(failures) <= MAX_FAILURES:
        try:
            crew = _crew(workers, gpus_per_worker, str(trials[0].out / "train"))
            with closing(crew.train(trials, mirror)) as messages:
                for message in messages:
                    lost_s += message.pop(LOST, 0.0)
                    if _FAILURE in message:
                        failures.append(message[_FAILURE])
                        if is_disk_full(failures[-1]):
                            raise OSError(failures[-1])
                        if UNSHARED in failures[-1]:
                            raise ClusterError(failures[-1].partition("ClusterError: ")[2].splitlines()[0])
                        if len(failures) > MAX_FAILURES:
                            break
                    elif message:
                        tune.report(message | {LOST: lost_s})
                else:
                    return
        except Exception as error:  # whatever ended the run; the study goes on with another
            _crew.cache_clear()
            if is_disk_full(str(error)) or isinstance(error, ClusterError):
                raise
            failures.append(f"{type(error).__name__}: {error}")
    for trial in trials:
        mirror.ended(trial.trial_id)
        if store.read_trial(trial.out, trial.trial_id) is None:
            record_end(trial, "FAILED", failures[-1])
            mirror.push_row(trial.trial_id)
    tune.report({LOST: lost_s})


@lru_cache(maxsize=1)
def _crew(workers: int, gpus_per_worker: float, folder: str) -> "_Crew":
    """This process's workers; kept from trial to trial."""
    return _Crew(workers, gpus_per_worker, folder)


class _Crew:
    """A run of Ray Train whose workers train for this process, one pack after another."""

    def __init__(self, workers: int, gpus_per_worker: float, folder: str) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._desk: ActorHandle[Desk] = (
            ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()
        )
        self._error: BaseException | None = None
        resources = {"GPU": gpus_per_worker} if gpus_per_worker > 0 else {"CPU": 1.0}
        reports = _Reports(self._desk)
        trainer = TorchTrainer(
            _train,
            train_loop_config={"desk": self._desk},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=gpus_per_worker > 0, resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name=uuid4().hex,
                storage_path=folder,
                callbacks=[reports, _Attempts(reports)],
                failure_config=ray.train.FailureConfig(
                    max_failures=-1,  # they are counted for each trial
                    controller_failure_limit=MAX_FAILURES,
                ),
            ),
        )
        threading.Thread(target=self._run, args=(trainer,), daemon=True).start()

    def _run(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
            self._error = RuntimeError("the workers have ended, though nobody told them to")
        except BaseException as error:
            self._error = error
        self._desk.put.remote({})  # wakes who waits for the workers

    def train(self, trials: list[Trial], mirror: Mirror) -> Generator[dict[str, Any], None, None]:
        """Have a pack trained, which is called off when this generator is closed.

        Yields:
            What the workers report, what was lost of their time (LOST), and why they ended (_FAILURE), after
            which others go on.

        Raises:
            Exception: whatever ended the run.
        """
        # As a reference, which the desk's process need not be able to read.
        number = ray.get(self._desk.leave.remote([ray.put((trials, mirror))]))
        try:
            while self._error is None:
                message = ray.get(self._desk.get.remote())
                about = message.pop(NUMBER, None)
                if about == number and ENDED in message:
                    return
                if about == number or (about is None and _FAILURE in message):
                    yield message
            raise self._error
        finally:
            self._desk.call_off.remote()


class _Reports(ray.train.UserCallback):  # type: ignore[misc]
    """Passes on to the desk what workers report; in the process that watches over them."""

    def __init__(self, desk: ActorHandle[Desk]) -> None:
        self._desk = desk
        self._number: int | None = None
        """Of the work that is being done."""

        self._last = 0.0
        """When all of it was safe."""

    def after_report(self, *, metrics: list[dict[str, Any]], **_: Any) -> None:
        """A report without values only says that all is safe until now."""
        message = metrics[0]
        self._number, self._last = message[NUMBER], time.monotonic()
        if len(message) > 1:
            self._desk.put.remote(message)
        if ENDED in message:
            self._number = None

    def after_exception(self, *, worker_exceptions: Mapping[int, Exception], **_: Any) -> None:
        """Tell why workers ended, unless they lost their node and Ray knew that they would."""
        if any(_is_preempted_actor(error) for error in worker_exceptions.values()):
            return
        told = [
            f"worker {rank}: {type(error).__name__}: {error}" for rank, error in worker_exceptions.items()
        ]
        self.ended({_FAILURE: "\n".join(told)})

    def ended(self, why: Mapping[str, str]) -> None:
        """All workers end, and with them what they had trained since their last report."""
        if self._number is not None:
            lost = {NUMBER: self._number, LOST: time.monotonic() - self._last}
            self._desk.put.remote({**lost, **why})
        elif why:
            self._desk.put.remote(dict(why))
        self._number = None


class _Attempts(WorkerGroupCallback):  # type: ignore[misc]
    """Clears the way for each group of workers and notes its end. Ray's public callbacks hear of neither."""

    def __init__(self, reports: _Reports) -> None:
        self._reports = reports

    def before_worker_group_start(self, _: Any) -> None:
        _give_back()

    def before_worker_group_shutdown(self, _: Any) -> None:
        self._reports.ended({})

    def after_worker_group_abort(self, _: Any) -> None:
        self._reports.ended({})


def _give_back() -> None:
    """Free the room of groups whose watching process has gone, as with its node, while they started.

    Ray itself frees it once they have started, else at the end of the study, which would wait for it.
    """
    own, nobody = ray.get_runtime_context().get_job_id(), ray.ActorID.nil().binary()
    for told in ray._private.state.state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(told)
        is_kept = group.state != PlacementGroupTableData.REMOVED and not group.is_detached
        of_actor = group.creator_actor_id not in (b"", nobody)  # and not of the study's own process
        if is_kept and of_actor and group.creator_actor_dead and group.creator_job_id.hex() == own:
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


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


class _CalledOffError(BaseException):
    """Ends a trial that a scheduler has stopped; no error that a trial could have."""


def _train(config: Mapping[str, Any]) -> None:
    """Each worker of a crew: train what is left on the desk, and take the next, until the run is ended."""
    desk = config["desk"]
    leads = ray.train.get_context().get_world_rank() == 0
    number = 0

    def ask(question: Any, about: int) -> Any:
        """The leader's answer from the desk, so that all workers agree."""
        return broadcast_from_rank_zero(ray.get(question.remote(about)) if leads else None)

    def report(values: Mapping[str, Any]) -> None:
        ray.train.report({NUMBER: number, **values})
        if not ask(desk.is_on, number):
            raise _CalledOffError

    def is_warned() -> bool:
        if not ask(desk.is_on, number):
            raise _CalledOffError
        return ray.train.get_preemption_info() is not None  # all workers ask at once

    while True:
        number = ask(desk.take, number)
        (work,) = ray.get(desk.work.remote(number))
        trials, mirror = ray.get(work)
        ray.train.report({NUMBER: number, BEGUN: True})
        try:
            train_mirrored(trials, get_device(), report, mirror, is_warned)
            ray.train.report({NUMBER: number, ENDED: True})
        except _CalledOffError:
            continue
        finally:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
