import os
import signal
import threading

import pytest

from phicalc.train.stopping import stop_on_signals


@pytest.fixture(autouse=True)
def _interrupts_as_in_a_terminal():
    """A background job of a shell is started with SIGINT ignored; tests may be such a job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number):
    os.kill(os.getpid(), number)


def test_a_signal_is_a_request():
    with stop_on_signals() as stop:
        assert not stop
        send(signal.SIGTERM)
        assert stop
        send(signal.SIGTERM)
    assert stop.name == "SIGTERM"


def test_a_second_interrupt_interrupts():
    with pytest.raises(KeyboardInterrupt), stop_on_signals() as stop:  # noqa: PT012
        send(signal.SIGINT)
        assert stop.name == "SIGINT"
        send(signal.SIGINT)


def test_termination_may_follow_an_interrupt():
    with stop_on_signals() as stop:
        send(signal.SIGINT)
        send(signal.SIGTERM)
    assert stop.name == "SIGINT"


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signals():
        send(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


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
