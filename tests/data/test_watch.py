"""A watched loader leaves the signals of the program that it is part of alone."""

import signal

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ipu_proxynorm.data import DamageReport, DataError, watched


@pytest.fixture
def child_signal():
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_programs_own_handler_stays(child_signal, workers):
    seen = []

    def handler(number, frame):
        seen.append(number)

    loader = DataLoader(TensorDataset(torch.arange(6)), batch_size=2, num_workers=workers)
    signal.signal(signal.SIGCHLD, handler)
    for (batch,) in watched(loader):
        assert len(batch) == 2
        assert signal.getsignal(signal.SIGCHLD) is handler


def test_torchs_handler_is_taken_back(child_signal):
    loader = DataLoader(TensorDataset(torch.arange(6)), batch_size=2, num_workers=1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    list(loader)  # sets torch's handler, where no loader did before
    for _ in watched(loader):
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


def test_damage_is_named_by_one_process_and_counted_by_all(recwarn):
    reports = [DamageReport(TensorDataset(torch.zeros(1)), limit=2) for _ in range(2)]
    for say, report in zip((True, False), reports):
        report.check(["a.png", "b.png"], say)
        with pytest.raises(DataError, match="3 files are no images or damaged"):
            report.check(["c.png"], say)
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == 3
    assert said[1].startswith("data: 'b.png' is no image or damaged, left out (2 so far")
