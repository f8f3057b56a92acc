"""The command line of studies: python study/run.py --space subspaces, and --help for everything else."""

import errno
import json
import logging
import os
import re
import select
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, TextIO

if __name__ == "__main__":  # study/ itself would come first, and its config.py hide other modules' names
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from mmjsd import data as datasets
from mmjsd.config import require
from study import manifest, mirror
from study.checks import (
    check_kept,
    check_machine,
    check_objectives,
    check_reachable,
    check_sampler,
    check_scheduler,
    check_workers,
)
from study.claim import claimed
from study.config import (
    GOES_ON,
    PRESETS,
    Preset,
    Sampler,
    Study,
    StudyConfig,
    TrialConfig,
    own_objective,
    seconds,
)
from study.files import Bucket, FilesError, is_url
from study.options import asks_for_help, parse, parse_study
from study.preview import describe, plural, shown
from study.questions import Question, list_questions, load_question
from study.space import SearchSpace

SPACES = Path(__file__).resolve().parents[1] / "search_spaces"

_log = logging.getLogger("study.run")

_HELP = """Train the configs of a search space, several times each, and keep every number.

Any field of a trial can be set; one that the space would vary is then fixed.

In the names of options, - and _ are the same.

Exit codes: 0 done, 1 trials failed, a replay differs or a study could not finish, 2 refused, 130 interrupted.

Spaces:"""


@dataclass(frozen=True)
class Request:
    """What a command line asks for, before it is checked against this machine and the folder."""

    options: StudyConfig
    preset: Preset
    out: Path
    bucket_url: str | None
    """The URL of --out where that is in object storage; `out` is then where this node works on it."""

    question: Question
    space: SearchSpace
    """The question's, without the fields that the command line has fixed."""

    base: TrialConfig
    stored: Mapping[str, Any] | None
    """The study.json of the study that is resumed."""


def main(argv: Sequence[str]) -> int:
    """Carry out a command line; the exit code: 0 done, 1 unfinished, 2 refused, 130 interrupted."""
    way = "the same command starts again"
    try:
        early = parse_study(argv)
        if early.replay is not None and not asks_for_help(argv):
            alone = len(argv) == (1 if "=" in argv[0] else 2)
            require(alone, "--replay goes without other options; leave them out")
            return _replay(early.replay)
        request = read_command_line(argv)
        way = way if request.stored is None else GOES_ON
        study = plan(request)
        command, where = ["study/run.py", *argv], manifest.JOURNAL
        if study.storage is not None:
            from study.storage import check_storage, without_credentials  # here: a database's driver is heavy

            where = without_credentials(study.storage)
            command = [word.replace(str(request.options.storage), where) for word in command]
        values = manifest.study_values(study, request.question, command, where)
        if request.stored is not None:
            manifest.refuse_changed(request.stored, values, study.where)
        if request.options.dry_run:
            sys.stdout.write(describe(study, request.question))
            return 0
        if study.address:
            check_reachable(study.address)
        if study.storage is not None:
            check_storage(study)
        if study.loggers:
            from study.loggers import check_loggers  # here: it needs torch

            check_loggers(study)
        with claimed(study):
            folder = mirror.Mirror(study.out, study.bucket_url)
            folder.open(is_new=study.is_new)
            before = manifest.Before(study.out)
            _open_folder(study, values, request.stored)
            folder.push_run()
            way = GOES_ON
            code = _run(study)
            if code == 2 and not study.is_new:
                before.put_back()
                folder.push_run()
            elif code == 2 and study.storage is None:
                folder.drop_run()
            return code
    except ValueError as refused:
        return _refuse(refused)
    except PermissionError as error:
        return _refuse(ValueError(f"cannot read or write {error.filename or 'a file'}: {error.strerror}"))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return _refuse(ValueError(f"{error.filename} has too long a name; choose a shorter one"))
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = f" for {error.filename}" if error.filename else ""
        sys.stderr.write(f"error: no space left{place}; free some, and {way}\n")
        return 1
    except KeyboardInterrupt:
        return _note_interruption(way)


def read_command_line(argv: Sequence[str]) -> Request:
    """Settle each field: the defaults, then the preset, then the space's base, then the command line.

    The options are parsed twice: what the first pass finds, space, preset and data set, decides the
    defaults that the second one fills in, and shows as help.

    Raises:
        ValueError: with one sentence, for anything that cannot be.
    """
    early = parse_study(argv)
    question = _question(early.space, argv)
    out, bucket_url = _place(f"runs/{question.name}" if early.out is None else early.out)
    stored = None
    if early.resume and not asks_for_help(argv):
        stored = manifest.stored_values(out, bucket_url)
        # An earlier version kept a path as it was given.
        stored["storage"] = _with_absolute_file(stored["storage"])
    elif not asks_for_help(argv):
        manifest.refuse_taken(out, bucket_url)
    preset = early.preset or (stored["preset"] if stored else _default_preset(early))
    fields = _layered(PRESETS[preset], question.space.base, question.space.presets.get(preset, {}))
    before = stored["base"].get("data") if stored else None
    known = before.get("name") if isinstance(before, dict) else None
    fields["data.name"] = early.dataset or known or fields["data.name"]
    data_set = TrialConfig().with_fields({"data.name": fields["data.name"]})
    kept = {name: stored[name] for name in _KEPT if stored and stored[name]}
    if kept.get("storage") == manifest.JOURNAL:
        del kept["storage"]
    kept["objectives"] = tuple(kept.get("objectives", [own_objective(data_set)]))
    defaults = StudyConfig(preset=preset, out=f"runs/{question.name}", **kept)
    spaces = "".join(f"\n- {name}: {title}" for name, title in list_questions(SPACES).items())
    options, given = parse(argv, defaults, data_set.with_fields(fields), _HELP + spaces)
    for path, value in given.items():
        whole = next((each for each in question.space.varied if path.startswith(f"{each}.")), None)
        require(whole is None, f"--{path} is part of {whole}, which the space varies; fix it with --{whole}")
        if path in question.space.varied:
            _log.info("%s is fixed at %s: the space no longer varies it", path, shown(value))
    base = data_set.with_fields(_layered(fields, given))
    if options.budget_samples is not None:
        own = "data.samples_per_epoch"
        require(own not in given, f"--budget-samples and --{own} contradict each other; give one of them")
        is_varied = "training.epochs" in question.space.without(tuple(given)).varied
        require(not is_varied, "--budget-samples needs equal epochs, which the space varies; leave it out")
        # As many epochs as before, so that evaluations and a scheduler's decisions stay as many too.
        base = base.with_fields({own: max(1, round(options.budget_samples / base.training.epochs))})
    if base.data.dir is not None:  # trials run in folders of their own
        base = base.with_fields({"data.dir": _absolute(base.data.dir, "--data-dir")})
    return Request(
        options=options,
        preset=preset,
        out=out,
        bucket_url=bucket_url,
        question=question,
        space=question.space.without(tuple(given)),
        base=base,
        stored=stored,
    )


def plan(request: Request) -> Study:
    """The study that was asked for, if it can be carried out here.

    Raises:
        ValueError: with one sentence, if not.
    """
    options, space, base = request.options, request.space, request.base
    tried = space.check(base)
    sampler, trials = _budget(options, space)
    most = trials
    if sampler == "grid":
        hashes = {base.config_hash(), *_grid_hashes(space, base, trials)}
        most = len(hashes) - 1
    confirm = min(options.confirm, most)
    if confirm < options.confirm:
        others = plural(most, "config")
        _log.info("--confirm %d is cut to the study's %s besides the base config", options.confirm, others)

    trained = _trained(tried, base, confirm)
    check_objectives(options, sampler, base, trained)
    if request.stored is None:
        check_scheduler(options, tried)
        if at_random := check_sampler(sampler, space):
            names = ", ".join(at_random)
            _log.info("--sampler %s seeks among numbers alone and draws %s at random", sampler, names)
    is_nothing = bool(options.confirm) and not space.domains
    require(not is_nothing, "the space varies no field, so there is nothing for --confirm to compare")

    gpus = manifest.gpus()
    gpus_per_worker = options.gpus_per_worker
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if gpus or options.address else 0.0
    check_machine(options, gpus_per_worker, len(gpus))
    check_workers(options.workers, trained)
    storage = options.storage and _with_absolute_file(options.storage)
    check_kept(None if request.bucket_url else request.out, storage)
    datasets.check(base.data.name, base.data.dir)

    commit, dirty = manifest.commit()
    return Study(
        name=request.stored["study"] if request.stored else request.out.name,
        space_name=request.question.name,
        space=space,
        base=base,
        preset=request.preset,
        sampler=sampler,
        scheduler=options.scheduler,
        objectives=options.objectives,
        trials=trials,
        replicates=options.replicates,
        confirm=confirm,
        confirm_replicates=_confirm_replicates(options, request.stored or {}),
        seed=options.seed,
        workers=options.workers,
        gpus_per_worker=gpus_per_worker,
        max_concurrent=options.max_concurrent,
        pack=options.pack,
        budget_s=seconds(options.budget) if options.budget else inf,
        budget_device_s=3600 * options.budget_device_hours if options.budget_device_hours else inf,
        storage=storage,
        loggers=options.loggers,
        keep_checkpoints=options.keep_checkpoints,
        retry=options.retry,
        address=options.address,
        out=request.out,
        bucket_url=request.bucket_url,
        is_new=request.stored is None,
        commit=commit,
        dirty=dirty,
        versions=json.dumps(manifest.versions()),
    )


_KEPT = ("trials", "replicates", "confirm", "objectives", "storage", "sampler", "scheduler", "seed")
"""Options that a study that is resumed has from its study.json."""


def _layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of all layers, in an order in which later ones win, also as a whole over its parts."""
    fields: dict[str, Any] = {}
    for layer in layers:
        fields = {path: value for path, value in fields.items() if path not in layer} | dict(layer)
    return fields


def _trained(tried: list[TrialConfig], base: TrialConfig, confirm: int) -> list[TrialConfig]:
    """With the base config, which only a confirmation trains."""
    return [*tried, base] if confirm else tried


def _open_folder(study: Study, values: Mapping[str, Any], stored: Mapping[str, Any] | None) -> None:
    """Prepare the data and write what the study is, so that Ray starts with nothing left to refuse."""
    from mmjsd.classifiers import load_classifiers  # here, because torch takes seconds to import

    data = datasets.load(study.base.data.name, study.base.data.dir, _log.info)
    load_classifiers(data, progress=_log.info)
    trained = _trained(study.space.check(study.base), study.base, study.confirm)
    if any(config.evaluation.features == "inception" for config in trained):
        from mmjsd.inception import find_weights

        find_weights(study.base.data.dir, _log.info)
    if stored is None:
        manifest.write_start(study, values, data.digest)
    else:
        manifest.write_resumed(study, stored, values, data.digest)


def _run(study: Study) -> int:
    try:
        from study.tuner import run_study  # here, because ray takes seconds to import

        outcome = run_study(study)
    except FilesError as lost:
        sys.stderr.write(f"error: {lost}; {GOES_ON}\n")
        return 1
    except (ValueError, ConnectionError) as refused:
        return _refuse(refused)
    if outcome.missing and not outcome.budget_is_spent:
        return _note_interruption()
    if not (outcome.complete or outcome.stopped or outcome.diverged or outcome.failed or outcome.missing):
        sys.stderr.write("error: nothing was trained: every config that the sampler proposed was refused\n")
        return 1
    counts = {"stopped": outcome.stopped, "diverged": outcome.diverged, "failed": outcome.failed}
    others = "".join(f", {count} {state}" for state, count in counts.items() if count or state != "stopped")
    _log.info("%s complete%s", plural(outcome.complete, "trial"), others)
    if outcome.missing:
        left = plural(outcome.missing, "trial")
        _log.info("the budget is spent with %s left; %s", left, GOES_ON)
    folder = study.bucket_url.partition("?")[0] if study.bucket_url else study.out
    _log.info("results: %s/results", folder)
    _log.info("report:  python analysis/report.py %s", shlex.quote(study.where))
    if outcome.failed:
        _log.info("the same command with --resume --retry failed tries the failed ones again")
    return 1 if outcome.failed else 0


def _place(out: str) -> tuple[Path, str | None]:
    """The folder in which this node works, and the URL of the one that counts, if it is in object storage."""
    require(bool(out), "--out is empty; name a folder, or leave --out out")
    if is_url(out):
        return mirror.local_folder(out), Bucket(out).url
    return _absolute(Path(out), "--out"), None


def _absolute(path: Path, option: str) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        home = path.parts[0]
        raise ValueError(f"cannot find {path}: {home} is no user's home; choose another {option}") from None


def _with_absolute_file(storage: str) -> str:
    """The URL of a database; SQLite's file is the same one from wherever a study goes on."""
    before_file = r"^sqlite(\+\w+)?:///(?!/|file:|$)"
    return re.sub(before_file, lambda found: f"{found[0]}{Path.cwd()}/", storage)


def _replay(trial: str) -> int:
    """Train one trial again and say whether its numbers are the same; 0 if they are, else 1."""
    run, _, name = trial.rstrip("/").rpartition("/")
    path = _absolute(mirror.local_run(run), "--replay") / name
    from study.replay import replay  # here, because torch takes seconds to import

    found = replay(path, run)
    for line in found.differences:
        _log.info(line)
    if found.error:
        _log.info("diverged as before, with the same error: %s", found.error)
        if not (found.num_equal or found.differences):  # within the first epoch, with nothing measured
            return 0
    equal = plural(found.num_equal, "value") + " equal"
    _log.info(f"{equal}, {plural(len(found.differences), 'difference')}" if found.differences else equal)
    return 1 if found.differences else 0


def _refuse(refused: Exception) -> int:
    sys.stderr.write(f"error: {' '.join(str(refused).split())}\n")
    return 2


def _note_interruption(way: str = GOES_ON) -> int:
    sys.stderr.write(f"interrupted; {way}\n")
    return 130


def _question(name: str | None, argv: Sequence[str]) -> Question:
    if name is None and asks_for_help(argv):
        return Question(name="SPACE", title="", description="", space=SearchSpace({}))
    known = ", ".join(list_questions(SPACES))
    require(name is not None, f"--space is missing; choose one of {known}, or give a file")
    return load_question(str(name), SPACES)


def _default_preset(options: StudyConfig) -> Preset:
    gpus = manifest.gpus()
    preset: Preset = "paper" if gpus or options.address else "laptop"
    reason = "--address names a cluster" if options.address else f"{len(gpus) or 'no'} GPU found"
    _log.info("preset %s (%s)", preset, reason)
    return preset


def _budget(options: StudyConfig, space: SearchSpace) -> tuple[Sampler, int]:
    """The sampler and how many configs it proposes."""
    is_finite = all(domain.is_finite for domain in space.domains.values())
    sampler = options.sampler if options.sampler and space.domains else "grid" if is_finite else "tpe"
    if sampler != "grid":
        return sampler, options.trials or 20
    size = len(space.grid())
    if options.trials is not None and options.trials > size:
        _log.info("--trials %d is cut to the grid's %s", options.trials, plural(size, "config"))
    return sampler, min(options.trials or size, size)


def _confirm_replicates(options: StudyConfig, stored: Mapping[str, Any]) -> int:
    """As asked now or when the study started, else as many as the search has."""
    asked = options.confirm_replicates or stored.get("confirm_replicates") or options.replicates
    return asked if options.confirm else 0


def _grid_hashes(space: SearchSpace, base: TrialConfig, trials: int) -> Iterator[str]:
    """Of the grid's first configs, without those that cannot be: these are skipped, as of any sampler."""
    refused = []
    for params in space.grid()[:trials]:
        try:
            yield space.decode(params, base).config_hash()
        except ValueError as error:
            refused.append(str(error))
    if refused:
        left_out = plural(len(refused), "config")
        _log.info("%s of the grid cannot be and will be skipped: %s", left_out, refused[0])


class Notes(logging.StreamHandler[TextIO]):
    """Writes to what standard output is at the time: a live display on a terminal takes its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one note."""
        self.stream = sys.stdout
        super().emit(record)


def _is_unread(descriptor: int) -> bool:
    """Whether it is a pipe whose reader has seen enough, as head has."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


if __name__ == "__main__":
    notes = logging.getLogger("study")
    notes.addHandler(Notes())
    notes.setLevel(logging.INFO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # of kill, Slurm, systemd: as Ctrl-C
    logging.raiseExceptions = False  # a note that nobody reads any more is no error
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_unread(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
