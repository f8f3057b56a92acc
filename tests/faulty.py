"""study/run.py with a fault planted where trials run: python -m tests.faulty PLACE DEED FLAG [options].

The product knows nothing of it. Functions of a main module travel to the trials' processes as they are, so
those below take the place of the study's own there, and in turn replace what the fault is about.
"""

import os
import signal
import sys
import time
from pathlib import Path

import study.tuner
from study.run import main

PLACE = sys.argv[1]
"""One of those that the functions below know."""

DEED = sys.argv[2]
"""die: the process kills itself; wait: it waits to be killed; always: it dies each time, not only once."""

FLAG = Path(sys.argv[3])
"""Appears when the deed is done; while it is there, the deed is not done again."""


def strike():
    if DEED != "always":
        try:
            FLAG.touch(exist_ok=False)
        except FileExistsError:
            return
    if DEED == "wait":
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)


def plant():
    """Make this process, which trains the study's second trial, meet the fault in its second epoch."""
    from mmjsd import train
    from study import record, store

    def half(write, path_at, is_it):
        def written(*given, **options):
            write(*given, **options)
            path = Path(given[path_at])
            if is_it(path, given[0]):
                whole = path.read_bytes()
                path.write_bytes(whole[: len(whole) // 2])
                strike()

        return written

    if PLACE == "start":
        strike()
    elif PLACE == "checkpoint":
        train.write_tensors = half(train.write_tensors, 0, lambda path, _: "epoch-000002" in str(path))
    elif PLACE == "parquet":
        store.pq.write_table = half(
            store.pq.write_table,
            1,
            lambda path, table: path.parent.name == "measurements" and max(table["epoch"].to_pylist()) == 2,
        )
    elif PLACE == "end":
        close = record._Recorder.close

        def closed(recorder, *how):
            strike()
            close(recorder, *how)

        record._Recorder.close = closed


def faulty_train_mirrored(trials, device, report, mirror):
    from study.worker import train_mirrored

    def reported(values):
        report(values)
        if PLACE == "between" and values["epoch"] == 2:
            strike()

    if PLACE == "start" or any((trials[0].out / "results" / "trials").glob("*.parquet")):
        plant()
        train_mirrored(trials, device, reported, mirror)
    else:
        train_mirrored(trials, device, report, mirror)


def faulty_train_on_workers(trials, workers, gpus_per_worker, mirror):
    from study import worker

    def train(config):
        import ray.train

        from study import worker  # this worker's own, which is as it should be

        train_mirrored = worker.train_mirrored

        def mirrored(trials, device, report, mirror, is_warned):
            def reported(values):
                report(values)
                if PLACE == "error":
                    raise ValueError("planted")
                if values.get("epoch") == 2 and ray.train.get_context().get_world_rank() == 1:
                    strike()

            train_mirrored(trials, device, reported, mirror, is_warned)

        worker.train_mirrored = mirrored
        worker._train(config)

    worker._train = train
    worker.train_on_workers(trials, workers, gpus_per_worker, mirror)


if __name__ == "__main__":
    for faulty in (faulty_train_mirrored, faulty_train_on_workers):
        name = faulty.__name__.removeprefix("faulty_")
        assert hasattr(study.tuner, name), f"study.tuner calls {name} no more"
        setattr(study.tuner, name, faulty)
    sys.exit(main(sys.argv[4:]))
