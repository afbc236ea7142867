"""Signals are noted while training runs, and mean what they always meant afterwards."""

import os
import signal
import threading
import time

import pytest
from pydantic import ValidationError

from pipeline.training.config import TrainConfig
from pipeline.training.preemption import Preemption


def test_a_signal_is_noted_and_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with Preemption(["SIGTERM", "SIGUSR1"]) as preemption:
        assert preemption.received is None and signal.getsignal(signal.SIGINT) == before[1]
        os.kill(os.getpid(), signal.SIGUSR1)
        assert preemption.received == signal.SIGUSR1
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_a_second_interrupt_ends_the_process_at_once() -> None:
    child = os.fork()
    if child == 0:
        with Preemption(["SIGINT"]) as preemption:
            os.kill(os.getpid(), signal.SIGINT)
            if preemption.received != signal.SIGINT:
                os._exit(1)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(10)
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGINT


def test_other_threads_leave_signals_alone() -> None:
    before, during = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with Preemption(["SIGTERM"]):
            during.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert during == [before]


def test_an_unknown_signal_is_refused_by_the_config() -> None:
    assert TrainConfig(preemption_signals=["SIGUSR1"]).preemption_signals == ["SIGUSR1"]
    with pytest.raises(ValidationError):
        TrainConfig(preemption_signals=["SIGKILL"])  # type: ignore[list-item]
