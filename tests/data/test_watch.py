"""A watched loader leaves the signals of the program that it is part of alone."""

import errno
import signal
import types

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ipu_proxynorm.data import DamageReport, DataError, ImageSet, watched
from ipu_proxynorm.data.decoding import Reason
from ipu_proxynorm.data.image_set import TensorImages
from ipu_proxynorm.data.watch import LeftOut, child_handler


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
        assert signal.getsignal(signal.SIGCHLD) == handler


def test_torchs_handler_is_taken_back(child_signal):
    loader = DataLoader(TensorDataset(torch.arange(6)), batch_size=2, num_workers=1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    list(loader)  # sets torch's handler, where no loader did before
    for _ in watched(loader):
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


def damaged(name):
    return LeftOut(name, Reason.DAMAGED)


def test_damage_is_named_by_one_process_and_counted_by_all(recwarn):
    reports = [DamageReport(TensorDataset(torch.zeros(1)), limit=2) for _ in range(2)]
    for say, report in zip((True, False), reports):
        report.check([damaged("a.png"), damaged("b.png")], say)
        with pytest.raises(DataError, match=r"3 files are damaged: 'a.png'"):
            report.check([damaged("c.png")], say)
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == 3
    assert said[1].startswith("data: 'b.png' is damaged, left out (2 so far")


@pytest.mark.filterwarnings("ignore:data")
def test_one_file_is_one_and_of_many_three_are_named():
    report = DamageReport(TensorDataset(torch.zeros(1)), limit=0)
    with pytest.raises(DataError, match="=0: 1 file is damaged: 'a'; repair or remove what is"):
        report.check([damaged("a")])
    with pytest.raises(DataError, match="=0: 5 files are damaged: 'c', 'd', 'e' and 2 more; "):
        report.check(map(damaged, "bcde"))


def report_on(reasons, share=1.0, strangers=()):
    images = ImageSet(
        TensorImages(torch.zeros(10, 1, 1, 1), torch.zeros(10)), (1, 1, 1), strangers=strangers
    )
    for number, reason in enumerate(reasons):
        images.reasons[number] = int(reason)
    return DamageReport(images, limit=1, share=share)


def test_only_damage_counts_as_damage_and_each_reason_has_its_sentence(recwarn):
    reasons = [Reason.DAMAGED, Reason.NO_IMAGE, Reason.TOO_LARGE, Reason.UNSUPPORTED]
    report = report_on([*reasons, Reason.MISSING], strangers=("a/notes.txt", "a/film.gif"))
    report.check(report.found())
    report.check(report.found())
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == len(set(said)) == 6
    assert said[0].startswith("data: 2 files are not read, by name no image: ")
    assert said[1] == "data: 'image 0' is damaged, left out (1 so far, data.max_corrupt=1)"
    assert said[2] == "data: 'image 1' is no image, left out"
    with pytest.raises(
        DataError, match=r"data.max_corrupt=1: 2 files are damaged: 'image 0', 'image 8'; repair"
    ):
        report.check([damaged("image 8")])


@pytest.mark.filterwarnings("ignore:data")
def test_more_than_a_share_of_the_files_stops_whatever_the_reason():
    report = report_on(3 * [Reason.NO_IMAGE], share=0.2)
    with pytest.raises(DataError, match=r"data.max_left_out=0.2: 3 of 10 files left out: "):
        report.check(report.found())
    report = report_on(10 * [Reason.NO_IMAGE])
    with pytest.raises(DataError, match="none of the files below it is an image"):
        report.check(report.found())


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (Reason.PERMISSION, "no permission.*give it the right"),
        (Reason.MEMORY, "memory that is free; free some"),
        (Reason.VANISHED, "not any more; put it back.*--resume"),
        (Reason.DISK, "disk or network; see to"),
    ],
)
def test_what_the_machine_is_to_blame_for_stops_at_once_and_is_no_damage(reason, words):
    report = report_on([reason])
    with pytest.raises(DataError, match=f"data: 'image 0' .*{words}"):
        report.check(report.found())


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (errno.EMFILE, "no more files can be opened here .*ulimit -n"),
        (errno.EACCES, r"could not hand over a batch \(Permission denied\); .*TMPDIR"),
        (-signal.SIGXCPU, r"died of SIGXCPU \(DataLoader.*ulimit -t"),
        (-signal.SIGSEGV, "died of SIGSEGV .*--resume"),
        (-signal.SIGKILL, "it may have run out of memory"),
    ],
)
def test_how_a_lost_worker_ended_is_said(status, words):
    class Loader:
        num_workers = 1
        _workers = (types.SimpleNamespace(exitcode=status),)

        def __iter__(self):
            return self

        def __next__(self):
            raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")

    handler = child_handler()
    with pytest.raises(DataError, match=words):
        next(watched(Loader()))
    assert signal.getsignal(signal.SIGCHLD) is handler
