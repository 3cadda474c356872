"""Who of a run's processes has come, who has gone, and what the latter said."""

import dataclasses
import os
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from ipu_proxynorm.run import attendance
from ipu_proxynorm.run import store as store_module
from ipu_proxynorm.run.attendance import Absent, Attendance, Word

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/ns/pid"), reason="needs Linux")


@pytest.fixture
def store():
    return dist.HashStore()


def together(*calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def both(store):
    """Two processes that have met, in one."""
    found = [Attendance(store, index, 2) for index in range(2)]
    deadline = time.monotonic() + 20
    together(*(lambda one=one: one.come(deadline) for one in found))
    return found


def ended_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_that_never_comes_is_named_at_the_deadline(store):
    with pytest.raises(Absent) as absent:
        Attendance(store, 0, 3).come(time.monotonic() + 0.2)
    assert str(absent.value) == "process 1 and process 2 of 3 have not come"


@needs_proc
def test_one_that_came_and_ended_is_named_at_once(store):
    place, _, _ = attendance._identity().rpartition(" ")
    store.set("who/1", f"{place} {ended_process()}")
    store.set("count/1", "3")
    store.add("here/1", 1)
    began = time.monotonic()
    with pytest.raises(Absent) as absent:
        Attendance(store, 0, 3).come(began + 60)
    assert str(absent.value) == "process 1 of 3 has ended"
    assert time.monotonic() - began < 10


def test_one_process_says_who_has_not_come(store):
    found = {}

    def come(index):
        try:
            Attendance(store, index, 3).come(time.monotonic() + 0.3)
        except Absent as absent:
            found[index] = absent

    for index in range(2):  # each sees the other at once, however late it begins
        store.set(f"who/{index}", attendance._identity())
        store.set(f"count/{index}", "3")
        store.add(f"here/{index}", 1)
    together(lambda: come(0), lambda: come(1))
    assert [str(found[index]) for index in range(2)] == ["process 2 of 3 has not come"] * 2
    assert [found[index].quiet for index in range(2)] == [False, True]


def test_a_second_process_of_the_same_number_is_refused_and_the_first_ones_meet(both, store):
    with pytest.raises(Absent, match="another process was started with RANK=1, too") as absent:
        Attendance(store, 1, 2).come(time.monotonic() + 20)
    assert not absent.value.quiet
    assert both[0].ended() == []


def test_another_number_of_processes_is_named_by_one_of_them(store):
    found = {}

    def come(index, count):
        with pytest.raises(Absent) as absent:
            Attendance(store, index, count).come(time.monotonic() + 20)
        found[index] = absent.value

    together(lambda: come(0, 2), lambda: come(1, 3))
    assert str(found[0]) == "process 1 was started with WORLD_SIZE=3"
    assert [found[index].quiet for index in range(2)] == [False, True]


def test_a_word_is_heard_though_its_process_and_store_end_before_anybody_asks(both, monkeypatch):
    both[1].listen()
    word = Word("'metrics.jsonl' cannot be written", 0)
    assert both[0].leave_word(word)
    assert not both[0].heard(20)
    monkeypatch.setattr(both[1], "_store", None)
    assert both[1].account() == ([0], dataclasses.replace(word, said=True))


@needs_proc
def test_who_ended_first_is_remembered_when_others_end_in_turn(both):
    place, _, _ = attendance._identity().rpartition(" ")
    both[1]._who = {**both[1]._who, 0: f"{place} {ended_process()}"}
    both[1].listen()
    deadline = time.monotonic() + 20
    while not both[1]._lost and time.monotonic() < deadline:
        time.sleep(0.01)
    both[1]._who[2] = f"{place} {ended_process()}"
    assert both[1].account() == ([0], None)


@needs_proc
def test_one_that_has_ended_since_is_missed_without_a_roll_call(both):
    place, _, _ = attendance._identity().rpartition(" ")
    both[0]._who[1] = f"{place} {ended_process()}"
    assert both[0].account() == ([1], None)


def test_of_another_machine_is_missed_by_a_roll_call(both, monkeypatch):
    monkeypatch.setattr(attendance, "ROLL_CALL_SECONDS", 0.3)
    both[0]._who[1] = "another machine 1"
    assert both[0].account() == ([1], None)


class Silent(dist.HashStore):
    """A store that from some time on does not answer, as its process is stopped."""

    def __init__(self):
        super().__init__()
        self.answers = threading.Event()
        self.answers.set()

    def add(self, key, amount):
        self.answers.wait(60)
        return super().add(key, amount)


@pytest.fixture
def silent(monkeypatch):
    """Four processes that have met, two on each machine, and whose store then falls silent."""
    store = Silent()
    found = [Attendance(store, index, 4) for index in range(4)]
    deadline = time.monotonic() + 20
    together(*(lambda one=one: one.come(deadline) for one in found))
    for one in found:
        one._who.update({2: "another machine 1", 3: "another machine 2"})
    monkeypatch.setattr(store_module, "ANSWER_SECONDS", 0.3)
    store.answers.clear()
    yield found, store.answers
    store.answers.set()


@needs_proc
def test_when_the_store_is_silent_who_is_not_on_this_machine_is_missed(silent):
    (_, second, third, _), answers = silent
    second.listen()
    assert second.account() == ([0, 2, 3], None)
    assert not second.leave_word(Word("interrupted", 15))
    assert third.account() == ([0, 3], None)
    assert second.heard_word() is None
    answers.set()
    deadline = time.monotonic() + 20
    while not third.leave_word(Word("interrupted", 15)) and time.monotonic() < deadline:
        time.sleep(0.01)
    while second.heard_word() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert second.heard_word() == Word("interrupted", 15)


def test_the_first_ends_after_those_that_call_the_roll_later(store, monkeypatch):
    monkeypatch.setattr(attendance, "ROLL_CALL_SECONDS", 0.3)
    first, second = (Attendance(store, index, 4) for index in range(2))
    waited = []
    for one in (first, second):
        monkeypatch.setattr(one, "_await", lambda *call, one=one: waited.append((one, *call[:2])))
    store.add("answers/1", 1)
    assert first.account() == ([2, 3], None)
    assert waited == [(first, "concluded", {1})]
    assert second.account() == ([2, 3], None)
    assert len(waited) == 1
    assert store.add("concluded/1", 0) == 1


def test_all_that_answer_are_not_missed(both):
    found = []
    together(*(lambda one=one: found.append(one.account()) for one in both))
    assert found == [([], None), ([], None)]


def test_the_word_of_one_that_ends_is_heard_by_the_first(both):
    word = Word("its memory does not suffice", 0)
    assert both[1].leave_word(word)
    assert both[0].account() == ([1], word)
    assert both[1].heard(20)


def test_a_word_that_nobody_hears_is_said_by_the_one_that_ends(both):
    assert both[1].leave_word(Word("interrupted", 15))
    assert not both[1].heard(0.1)
    assert both[0].account() == ([1], Word("interrupted", 15, said=True))


def test_the_first_process_says_its_own_word(both):
    assert both[0].leave_word(Word("interrupted", 2))
    assert both[1].account() == ([0], Word("interrupted", 2, said=True))
    assert not both[0].heard(20)


@needs_proc
def test_one_of_those_left_says_who_ended_with_the_store(store, monkeypatch):
    monkeypatch.setattr(attendance, "_LINGERING_SECONDS", 0.1)
    place, _, _ = attendance._identity().rpartition(" ")
    said = []
    for index in (1, 2):
        one = Attendance(store, index, 3)
        one._who = {0: f"{place} {ended_process()}", 1: attendance._identity(), 2: ""}
        said.append(one.without_store())
    assert [str(absent) for absent in said] == ["process 0 of 3 has ended"] * 2
    assert [absent.quiet for absent in said] == [False, True]
