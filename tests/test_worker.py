"""What passes between a trial's driver and its workers: work and its end, reports, losses, failures."""

import asyncio
from contextlib import closing
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from study import worker
from study.desk import ENDED, NUMBER, Desk


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(worker, "time", clock)
    return clock


@pytest.fixture
def told():
    """Messages that reached the desk."""
    return []


@pytest.fixture
def reports(clock, told):
    return worker._Reports(SimpleNamespace(put=SimpleNamespace(remote=told.append)))


def report(reports, **values):
    reports.after_report(run_context=None, metrics=[values, {"of": "another worker"}], checkpoint=None)


def test_waiting_for_workers_is_no_loss_and_none_is_counted_twice(reports, told, clock):
    attempts = worker._Attempts(reports)
    attempts.after_worker_group_abort(None)  # they never came
    clock.now += 100
    report(reports, **{NUMBER: 1})  # they take their work
    clock.now += 7
    attempts.before_worker_group_shutdown(None)
    clock.now += 100
    attempts.after_worker_group_abort(None)
    assert told == [{NUMBER: 1, worker.LOST: 7}]


def test_only_what_came_after_the_last_report_is_lost(reports, told, clock):
    report(reports, **{NUMBER: 1})
    clock.now += 50
    report(reports, **{NUMBER: 1}, epoch=1)
    clock.now += 2
    reports.after_exception(run_context=None, worker_exceptions={1: ValueError("odd")})
    worker._Attempts(reports).before_worker_group_shutdown(None)
    assert told == [
        {NUMBER: 1, "epoch": 1},
        {NUMBER: 1, worker.LOST: 2, worker._FAILURE: "worker 1: ValueError: odd"},
    ]


def test_workers_that_wait_for_work_lose_nothing(reports, told, clock):
    report(reports, **{NUMBER: 1, ENDED: True})
    clock.now += 50
    worker._Attempts(reports).before_worker_group_shutdown(None)
    assert told == [{NUMBER: 1, ENDED: True}]


def test_workers_that_fail_before_they_have_work_tell_why(reports, told):
    reports.after_exception(run_context=None, worker_exceptions={0: ImportError("no such thing")})
    assert told == [{worker._FAILURE: "worker 0: ImportError: no such thing"}]


def test_a_node_that_was_preempted_is_no_failure(reports, told):
    death = ActorDiedError()
    death._preempted = True
    assert death.preempted
    reports.after_exception(run_context=None, worker_exceptions={0: RuntimeError("closed"), 1: death})
    assert told == []


def on_a_desk(using):
    async def within() -> None:
        async with asyncio.timeout(5):
            await using(Desk())

    asyncio.run(within())


def test_work_is_taken_once_it_is_left_and_once_by_each():
    async def using(desk):
        waiting = asyncio.create_task(desk.take(0))
        await asyncio.sleep(0)
        assert not waiting.done()
        assert await desk.leave("first") == 1
        assert await waiting == 1
        assert await desk.work(1) == "first"
        waiting = asyncio.create_task(desk.take(1))
        await asyncio.sleep(0.01)
        assert not waiting.done()  # who has done it waits for the next
        assert await desk.take(0) == 1  # who took another's place does not
        assert await desk.leave("second") == 2
        assert await waiting == 2
        assert not await desk.is_on(1)
        assert await desk.is_on(2)

    on_a_desk(using)


@pytest.mark.parametrize(
    "end", [lambda desk: desk.call_off(), lambda desk: desk.put({NUMBER: 1, ENDED: True})]
)
def test_work_that_is_over_is_not_given_to_those_who_replace_others(end):
    async def using(desk):
        await desk.leave("first")
        await end(desk)
        assert not await desk.is_on(1)
        waiting = asyncio.create_task(desk.take(0))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await desk.leave("second")
        assert await waiting == 2

    on_a_desk(using)


def test_a_late_end_of_earlier_work_takes_no_other_from_the_desk():
    async def using(desk):
        await desk.leave("first")
        await desk.call_off()
        await desk.leave("second")
        await desk.put({NUMBER: 1, ENDED: True})
        assert await desk.is_on(2)
        assert await asyncio.wait_for(desk.take(1), 1) == 2

    on_a_desk(using)


def test_messages_come_in_their_order():
    async def using(desk):
        for epoch in range(3):
            await desk.put({"epoch": epoch})
        assert [(await desk.get())["epoch"] for _ in range(3)] == [0, 1, 2]

    on_a_desk(using)


def test_messages_from_before_are_forgotten_when_work_is_left():
    async def using(desk):
        await desk.put({"of": "workers that had nothing to do"})
        await desk.leave("first")
        await desk.put({"epoch": 1})
        assert await desk.get() == {"epoch": 1}

    on_a_desk(using)


class Actor:
    """Calls a desk in this process as if it were an actor; when work is left, workers say what is planned."""

    def __init__(self, *plans):
        self.loop, self.desk, self.plans = asyncio.new_event_loop(), Desk(), list(plans)

    def __getattr__(self, name):
        def remote(*given):
            found = self.loop.run_until_complete(asyncio.wait_for(getattr(self.desk, name)(*given), 5))
            for message in self.plans.pop(0) if name == "leave" else ():
                self.put.remote(dict(message))
            return found

        return SimpleNamespace(remote=remote)


@pytest.fixture
def crew(monkeypatch):
    """Makes a crew whose workers say, of each work that is left, what is planned."""
    monkeypatch.setattr(worker.ray, "get", lambda given: given)
    monkeypatch.setattr(worker.ray, "put", lambda given: given)

    def made(*plans):
        crew = object.__new__(worker._Crew)
        crew._desk, crew._error = Actor(*plans), None
        return crew

    return made


def test_what_is_about_earlier_work_is_not_heard(crew):
    one, late, two = {NUMBER: 1, "epoch": 1}, {NUMBER: 1, "epoch": 2}, {NUMBER: 2, "epoch": 20}
    made = crew([one], [late, two, {NUMBER: 2, ENDED: True}])
    with closing(made.train(["stopped"], None)) as messages:
        assert next(messages) == {"epoch": 1}
    assert not made._desk.is_on.remote(1)
    assert list(made.train(["next"], None)) == [{"epoch": 20}]


class Run:
    """A run of Ray Train that has ended."""

    def __init__(self, error):
        self.error = error

    def fit(self):
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    ("error", "told"), [(RuntimeError("no controller"), "no controller"), (None, "nobody told them")]
)
def test_a_run_that_ends_ends_the_trial_with_its_error(crew, error, told):
    made = crew([{NUMBER: 1, "epoch": 1}], [])
    messages = made.train(["trial"], None)
    assert next(messages) == {"epoch": 1}
    made._run(Run(error))
    with pytest.raises(RuntimeError, match=told):
        next(messages)
    with pytest.raises(RuntimeError, match=told):
        next(made.train(["another"], None))
