"""``state.json``: how a run stands, also after its process has died."""

import json
import os
import signal

import pytest

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.run.interruption import Interrupted
from ipu_proxynorm.run.state import (
    STATE,
    Damaged,
    RunState,
    load_state,
    read_state,
    recorded,
    write_state,
)


def test_a_run_is_running_and_then_finished(tmp_path):
    with recorded(tmp_path) as recorder:
        assert read_state(tmp_path).describe() == "running"
        recorder.write()
    state = read_state(tmp_path)
    assert (state.describe(), state.process, state.message) == ("finished", os.getpid(), None)
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (UserError("the loss is nan"), "failed", "the loss is nan"),
        (MemoryError(), "failed", "MemoryError"),
        (KeyboardInterrupt(), "stopped", "interrupted"),
        (Interrupted("interrupted after epoch 1", 15), "stopped", "interrupted after epoch 1"),
    ],
)
def test_what_ended_it_is_kept(tmp_path, error, state, message):
    with pytest.raises(type(error)), recorded(tmp_path):
        raise error
    found = read_state(tmp_path)
    assert (found.describe(), found.message) == (state, message)


def test_the_time_of_all_parts_adds_up(tmp_path):
    write_state(tmp_path, RunState("stopped", "2021-06-07T08:09:10+00:00", 1000.0, 1, "there"))
    with recorded(tmp_path):
        pass
    found = read_state(tmp_path)
    assert found.started == "2021-06-07T08:09:10+00:00"
    assert 1000 <= found.seconds < 1060


def test_a_process_that_was_killed_is_noticed(tmp_path):
    child = os.fork()
    if child == 0:
        with recorded(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert read_state(tmp_path).state == "running"
    assert read_state(tmp_path).describe() == "died"


def test_another_machine_is_named(tmp_path):
    write_state(tmp_path, RunState("running", "", 0.0, os.getpid(), "elsewhere"))
    assert read_state(tmp_path).describe() == "running on elsewhere"


@pytest.mark.parametrize("text", ["", "{", "[]", json.dumps({"state": "running"})])
def test_a_file_that_says_nothing(tmp_path, text):
    (tmp_path / STATE).write_text(text)
    assert read_state(tmp_path) is None


def test_a_pipe_in_its_place_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / STATE)
    with pytest.raises(Damaged, match=r"state\.json is not a file"):
        load_state(tmp_path)
    with recorded(tmp_path):
        assert read_state(tmp_path).describe() == "running"
