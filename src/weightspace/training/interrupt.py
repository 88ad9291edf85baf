"""Ctrl-C and SIGTERM during training: finish the step, save, then stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal after its state was saved.

    Attributes:
        exit_code: What a shell expects: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code: int = 128 + signal_number


class StopRequest:
    """Whether a signal has asked training to stop; `signal_number` is 0 as long as none has."""

    def __init__(self) -> None:
        self.signal_number = 0


@contextmanager
def stop_requests() -> Generator[StopRequest, None, None]:
    """Turn the first SIGINT or SIGTERM into a request that the training loop reads between steps.

    A second signal acts as it did before, so a hanging run can still be killed. Only the main thread can
    handle signals: elsewhere no request ever comes. A signal that is ignored stays ignored.

    Yields:
        The request.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # An ignored signal stays ignored: a comparison's workers leave Ctrl-C to their parent.
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def ask(number: int, _frame: FrameType | None) -> None:
        request.signal_number = number
        _restore()

    def _restore() -> None:
        for number, handler in before.items():
            # None: installed by other than Python, which cannot be put back from here
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        _restore()
