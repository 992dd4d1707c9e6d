import pytest

from phicalc.train.config import CosineConfig, PlateauConfig
from phicalc.train.schedule import Schedule


def test_cosine_rises_linearly_and_falls_to_its_floor():
    schedule = Schedule(CosineConfig(warmup_steps=4, final_fraction=0.1), total_steps=104)
    rates = [schedule.fraction(step) for step in range(110)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[54] == pytest.approx(0.55)  # half-way: midway between 1 and 0.1
    assert rates[29] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + 2**-0.5))  # a quarter: cos 45°
    assert rates[104:] == pytest.approx([0.1] * 6)
    assert sorted(rates[4:], reverse=True) == rates[4:]


def test_without_warm_up_it_starts_at_the_peak():
    assert Schedule(CosineConfig(warmup_steps=0), 10).fraction(0) == 1.0


def plateau(**settings):
    return Schedule(PlateauConfig(warmup_steps=1, patience=2, factor=0.5, **settings), 100)


def test_plateau_cuts_after_its_patience_and_not_while_the_loss_falls():
    schedule = plateau()
    for loss in (1.0, 0.9, 0.8, 0.7):
        schedule.validated(loss)
    assert schedule.fraction(0) == 0.5
    assert schedule.fraction(50) == 1.0
    for _ in range(3):
        schedule.validated(0.7)
    assert schedule.fraction(50) == 0.5
    schedule.validated(0.6)
    schedule.validated(0.65)
    assert schedule.fraction(50) == 0.5


def test_a_fall_below_the_threshold_does_not_count():
    schedule = plateau(threshold=0.1)
    for loss in (1.0, 0.95, 0.94, 0.93):
        schedule.validated(loss)
    assert schedule.fraction(50) == 0.5


def test_plateau_is_exhausted_below_its_final_fraction():
    schedule = plateau(final_fraction=0.25)
    for _ in range(1 + 6):
        schedule.validated(1.0)
    assert schedule.fraction(50) == 0.25
    assert not schedule.exhausted
    for _ in range(3):
        schedule.validated(1.0)
    assert schedule.exhausted


def test_another_measure_starts_plateaus_anew_and_leaves_the_rate():
    schedule = plateau()
    for loss in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0):  # one cut, two stale
        schedule.validated(loss)
    schedule.forget()
    for loss in (50.0, 60.0, 60.0):
        schedule.validated(loss)
    assert schedule.fraction(50) == 0.5
    schedule.validated(60.0)
    assert schedule.fraction(50) == 0.25


def test_plateau_goes_on_where_it_was():
    first, second = plateau(), plateau()
    losses = [1.0, 1.0, 1.0, 1.0, 0.5, 0.6]
    for loss in losses[:3]:
        first.validated(loss)
    second.load_state_dict(first.state_dict())
    for loss in losses[3:]:
        first.validated(loss)
        second.validated(loss)
    assert second.state_dict() == first.state_dict()
    assert second.fraction(50) == 0.5
