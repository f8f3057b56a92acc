"""What is lost with workers: from the last moment at which all was safe to their end, and nothing else."""

from types import SimpleNamespace

import pytest

from study import worker


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(worker, "time", clock)
    return clock


def test_waiting_for_workers_is_no_loss_and_none_is_counted_twice(clock):
    reports = SimpleNamespace(last=None, lost_s=0.0)
    attempts = worker._Attempts(reports)
    attempts.after_worker_group_abort(None)  # they never came
    assert reports.lost_s == 0
    attempts.after_worker_group_start(None)
    clock.now += 7
    attempts.before_worker_group_shutdown(None)
    clock.now += 100
    attempts.after_worker_group_abort(None)
    assert reports.lost_s == 7
    attempts.after_worker_group_start(None)
    clock.now += 5
    reports.last = clock.now  # as a report does
    clock.now += 2
    attempts.before_worker_group_shutdown(None)
    assert reports.lost_s == 9
