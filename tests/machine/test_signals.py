import os
import signal
import threading

import pytest

from phicalc.machine.signals import SIGNALS, stop_on_signals


class Killed(BaseException):
    """Stands for the end of the process by SIGTERM."""


@pytest.fixture(autouse=True)
def _as_in_a_terminal():
    """A background job of a shell is started with SIGINT ignored; tests may be such a job."""

    def killed(number, frame):
        raise Killed

    before = [signal.getsignal(number) for number in SIGNALS]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, killed)
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("sigterm_repeats", [False, True])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request(number, sigterm_repeats):
    with stop_on_signals(sigterm_repeats=sigterm_repeats) as stop:
        assert not stop and stop.name is None
        send(number)
        assert stop and stop.name == number.name


@pytest.mark.parametrize("sigterm_repeats", [False, True])
@pytest.mark.parametrize("first", SIGNALS)
def test_an_interrupt_after_a_request_interrupts(first, sigterm_repeats):
    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt),
        stop_on_signals(sigterm_repeats=sigterm_repeats) as stop,
    ):
        send(first)
        assert stop.name == first.name
        send(signal.SIGINT)


@pytest.mark.parametrize("first", SIGNALS)
def test_termination_after_a_request_terminates(first):
    with pytest.raises(Killed), stop_on_signals():  # noqa: PT012
        send(first)
        send(signal.SIGTERM)


@pytest.mark.parametrize("first", SIGNALS)
def test_termination_may_repeat_where_torchrun_repeats_it(first):
    with stop_on_signals(sigterm_repeats=True) as stop:
        send(first)
        send(signal.SIGTERM)
        send(signal.SIGTERM)
    assert stop.name == first.name


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    for repeats in (False, True):
        with stop_on_signals(sigterm_repeats=repeats):
            send(signal.SIGINT)
        assert [signal.getsignal(number) for number in SIGNALS] == before


def test_another_thread_leaves_signals_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with stop_on_signals() as stop:
            seen.append((bool(stop), signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
