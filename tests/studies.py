"""Studies without training: one trial's rows, and a search whose trials end as a test says."""

import dataclasses
import math
from datetime import UTC, datetime

import optuna
import pyarrow as pa

from mmjsd.metrics import Score
from study import store
from study.config import Study, TrialConfig
from study.record import identity
from study.space import Choice, SearchSpace, Uniform

GRID = SearchSpace({"model.style_dim": Choice((0, 2)), "objective.beta": Choice((1.0, 2.0, 4.0))})
LINE = SearchSpace({"objective.beta": Uniform(0.5, 8.0)})
PLANE = SearchSpace({"objective.beta": Uniform(0.5, 8.0), "objective.beta_style": Uniform(0.5, 8.0)})
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def trial(trial_id="abc-r0", **columns):
    """A row of the table of trials, of one that is complete unless the columns say otherwise."""
    texts = {
        field.name: "" for field in store.TRIALS if pa.types.is_string(field.type) and not field.nullable
    }
    texts |= {"versions": "{}", "objective_metric": "mean_coherence", "config": "{}"}
    numbers = {"replicate": 0, "seed": 2**54, "epochs": 1, "wall_s": 1.0, "device_s": 1.0, "workers": 1}
    nothing = {"evaluation_s": None, "samples_per_s": None, "peak_memory_gib": None, "objective_value": None}
    nothing |= {"phase": "search", "lost_s": None}
    times = {"started_at": NOW, "finished_at": NOW, "dirty": False}
    return {**texts, **numbers, **nothing, **times, "trial_id": trial_id, "state": "COMPLETE", **columns}


def measurement(value=0.5, name="abc-r0", epoch=1):
    texts = {field.name: "" for field in store.MEASUREMENTS if pa.types.is_string(field.type)}
    numbers = {"replicate": 0, "epoch": epoch, "value": value, "standard_error": None, "num_samples": 10}
    return {**texts, **numbers, "trial_id": name, "metric": "coherence"}


def study(out, space=GRID, sampler="grid", trials=6, replicates=2, scheduler="none", **changes) -> Study:
    out.mkdir(exist_ok=True)
    made = Study(
        name="test",
        space_name="test",
        space=space,
        base=TrialConfig(),
        preset="laptop",
        sampler=sampler,
        scheduler=scheduler,
        trials=trials,
        objectives=("mean_coherence",),
        replicates=replicates,
        confirm=0,
        confirm_replicates=0,
        seed=3,
        workers=1,
        gpus_per_worker=0.0,
        max_concurrent=None,
        pack=1,
        budget_s=math.inf,
        budget_device_s=math.inf,
        storage=None,
        loggers=(),
        keep_checkpoints=20,
        retry=(),
        address=None,
        out=out,
        commit="",
        dirty=False,
        versions="{}",
    )
    return dataclasses.replace(made, **changes)


def end(search, served, value, state="COMPLETE", **columns):
    """What a trial's process and the tuner do when it ends."""
    values = value if isinstance(value, tuple) else (value,)
    now = datetime.now(UTC)
    told = {"state": state, "started_at": now, "finished_at": now, "objective_value": values[0], **columns}
    row = trial(**identity(served) | told)
    several = dict(zip(served.objectives, values, strict=True)) if len(values) > 1 else {}
    store.write_measurements(served.out, served.trial_id, [])
    store.write_trial(served.out, row, served.params, several)
    search.ended(served)


def run(search, value=lambda trial: trial.replicate + trial.config.objective.beta, limit=None):
    """Serve and end trials one after the other; their names in order."""
    served = []
    while limit is None or len(served) < limit:
        trial = search.next()
        if trial is None:
            break
        served.append(trial)
        end(search, trial, value(trial))
    return served


def optuna_trials(out):
    journal = optuna.storages.journal.JournalFileBackend(str(out / "optuna.journal"))
    return optuna.load_study(study_name=None, storage=optuna.storages.JournalStorage(journal)).get_trials()


def measured(trial, *values):
    """What a trial's process writes: the first objective, epoch by epoch."""
    columns = ("study", "trial_id", "config_hash", "replicate")
    known = {name: value for name, value in identity(trial).items() if name in columns}
    score = {**vars(Score("mean_coherence", 0.0, None, 9, "product")), "split": "validation"}
    rows = [{**known, **score, "epoch": epoch, "value": value} for epoch, value in enumerate(values, 1)]
    store.write_measurements(trial.out, trial.trial_id, [row | {"attribute": None} for row in rows])
