from kvflow_jax.speculation.step_times import _MAX_AGE, StepTimes

SIZES = [1, 2, 4, 8]


def times_of(ahead, waiting) -> StepTimes:
    times = StepTimes()
    for is_ahead, seconds in ((True, ahead), (False, waiting)):
        for size, one in zip(SIZES, seconds, strict=True):
            times.record(size, one, is_ahead=is_ahead)
    return times


def test_drafts_fill_the_rows_that_cost_nothing():
    times = times_of([1.0] * 4, [1.0] * 4)
    assert times.num_worthwhile([0.9, 0.8, 0.1, 0.05], 1, SIZES) == 4
    assert times.num_worthwhile([0.9] * 20, 1, SIZES) == 7
    assert times.num_worthwhile([0.9] * 20, 8, SIZES) == 0
    assert times.num_worthwhile([], 1, SIZES) == 0


def test_rows_that_cost_more_than_they_give_have_no_drafts():
    times = times_of([1.0, 1.1, 2.0, 4.0], [1.0, 1.1, 2.0, 4.0])
    assert times.num_worthwhile([0.9, 0.8, 0.7], 1, SIZES) == 1
    assert times.num_worthwhile([0.05, 0.04, 0.03], 1, SIZES) == 0
    # Of two requests a third row costs as much as four.
    assert times.num_worthwhile([0.5, 0.4], 2, SIZES) == 0


def test_running_ahead_of_the_host_is_given_up_only_for_more():
    times = times_of([1.0] * 4, [1.5] * 4)
    assert times.num_worthwhile([0.4], 1, SIZES) == 0
    assert times.num_worthwhile([0.6], 1, SIZES) == 1


def test_a_size_that_was_never_measured_is_tried():
    times = StepTimes()
    assert times.num_worthwhile([0.5], 1, SIZES) == 1
    times.record(1, 2.0, is_ahead=True)
    assert times.seconds(8, is_ahead=False) < 2.2
    times.record(8, 9.0, is_ahead=False)
    assert times.num_worthwhile([0.5, 0.25, 0.125, 0.06, 0.03], 1, SIZES) < 5


def test_a_step_that_another_program_delayed_counts_as_twice_the_time_at_most():
    times = times_of([1.0] * 4, [1.0] * 4)
    times.record(8, 100.0, is_ahead=False)
    assert times.seconds(8, is_ahead=False) <= 1.2


def test_times_are_forgotten_and_those_of_a_clock_that_stands_still_are_none():
    times = StepTimes()
    times.record(8, 9.0, is_ahead=False)
    times.record(1, 0.0, is_ahead=False)
    for _ in range(_MAX_AGE + 1):
        times.record(1, 1.0, is_ahead=True)
    assert times.seconds(8, is_ahead=False) < 2
