"""Signals and limits that ask a run to stop."""

import os
import resource
import signal

import pytest

from ipu_proxynorm.run import interruption
from ipu_proxynorm.run.interruption import Interruption


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ((3600, 3600), (3540, 3600)),
        ((20, 20), (15, 20)),
        ((50, 3600), None),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None),
    ],
)
def test_cpu_time_is_kept_back_where_the_limit_leaves_none(monkeypatch, limits, kept):
    found = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: found.append(new))
    interruption.keep_cpu_time()
    assert found == ([] if kept is None else [kept])


def test_cpu_time_that_is_used_up_asks_once_though_it_is_said_each_second(capfd):
    with Interruption().watch() as asked:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGXCPU)
        assert asked.signal_number == signal.SIGXCPU
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "CPU time (ulimit -t) is used up: stopping after this host call" in said
