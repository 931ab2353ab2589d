"""The size of a workload, as flags request it."""

import pytest

from experiments.workloads.base import Sizes
from experiments.workloads.scale import Scale, ScaleError


def test_defaults_apply_unless_a_flag_is_given():
    assert Scale().num_runs(quick=2, full=9) == 9
    assert Scale(is_quick=True).num_runs(quick=2, full=9) == 2
    assert Scale(is_quick=True, runs=5).num_runs(quick=2, full=9) == 5
    assert Scale(runs_per_s=3.0).rate(1.0) == 3.0
    assert Scale(prompt=Sizes(1, 2, 3)).sizes(Sizes(4, 5, 6)) == Sizes(1, 2, 3)


def test_a_flag_that_the_workload_does_not_use_is_refused():
    scale = Scale(runs=5, runs_per_s=1.0)
    scale.num_runs(quick=1, full=1)
    with pytest.raises(ScaleError, match="cannot be scaled by --rate; it can by: --runs"):
        scale.check("cycle")
    scale.rate(1.0)
    scale.check("cycle")
