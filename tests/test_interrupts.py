"""Ctrl-C and SIGTERM end a study in order."""

import signal
import socket
import threading
from types import SimpleNamespace

import pytest

from study import interrupts


def test_a_second_signal_does_not_wait_for_a_ray_that_hangs():
    waited = []

    def start():
        with interrupts.uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            waited.append(True)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored here
    try:
        with pytest.raises(KeyboardInterrupt):
            start()
        assert not waited
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "of_ctrl_c", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background"]
)
def test_what_ends_a_process_interrupts_a_study(monkeypatch, of_ctrl_c):
    before, of_user = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, of_ctrl_c)
    monkeypatch.setattr(interrupts, "_leave_without_ray", lambda display, ended: ended.wait())
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.sigterm_as_interrupt(None):
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGINT, of_user)
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_that_ends_rays_processes_too_leaves_at_once(monkeypatch, capsys):
    closed, left = [], []
    monkeypatch.setattr(interrupts.os, "_exit", lambda code: (left.append(code), ended.set()))
    display, ended = SimpleNamespace(close=lambda: closed.append(True)), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(
            interrupts.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address)
        )
        watch = threading.Thread(target=interrupts._leave_without_ray, args=(display, ended))
        watch.start()
        server.accept()
        assert not left  # Ray is there, and ends in order
    watch.join(timeout=30)
    assert (closed, left) == ([True], [130])
    assert capsys.readouterr().err == "interrupted; the same command with --resume goes on\n"
