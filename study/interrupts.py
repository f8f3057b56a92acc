"""Ctrl-C and SIGTERM end a study in order, whatever Ray makes of them."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import ray

from study.config import GOES_ON
from study.display import Display


@contextmanager
def uninterrupted() -> Iterator[None]:
    """The first Ctrl-C or SIGTERM waits until Ray has started, which would crash; a second one does not."""
    noted = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        signal.alarm(0)  # by which Ray's own handler, which has passed this on, ends the process
        noted.append(number)
        if len(noted) > 1:
            raise KeyboardInterrupt

    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # as of a script's background job
            signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted:
        raise KeyboardInterrupt


@contextmanager
def sigterm_as_interrupt(display: Display) -> Iterator[None]:
    """What kill, Slurm or systemd send ends the study as Ctrl-C does; Ray itself would crash by it."""
    ended = threading.Event()
    watch = threading.Thread(target=_leave_without_ray, args=(display, ended), daemon=True)

    def interrupt(_: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # it watches already
            watch.start()
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # a script's background job ignores Ctrl-C
            handler = signal.default_int_handler
        handler(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        ended.set()
        signal.signal(signal.SIGTERM, before)


def _leave_without_ray(display: Display, ended: threading.Event) -> None:
    """End the process where the signal went to Ray's, too: it would wait a minute for them, and crash.

    So `timeout`, systemd and Slurm send it. All that counts is in the folder by then, as after a crash.
    """
    host, port = ray.get_runtime_context().gcs_address.rsplit(":", 1)
    while not ended.wait(0.5):
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except ConnectionRefusedError:
            display.close()
            sys.stderr.write(f"interrupted; {GOES_ON}\n")
            sys.stderr.flush()
            os._exit(130)
        except OSError:
            continue
