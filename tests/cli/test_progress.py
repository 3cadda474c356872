"""How far an epoch is, where no terminal shows a bar: lines by the clock."""

import io
from types import SimpleNamespace

import pytest

from ipu_proxynorm.cli.output import CleanConsole, Output
from ipu_proxynorm.cli.progress import Lines


def lines(seconds, every, calls=10, done=0):
    """What is printed where each host call takes that long."""
    stream, now = io.StringIO(), [0.0]
    run = SimpleNamespace(
        arithmetic=SimpleNamespace(host_calls=calls),
        config=SimpleNamespace(training=SimpleNamespace(line_seconds=every, epochs=2)),
    )
    progress = Lines(CleanConsole(Output(stream)), run, done, clock=lambda: now[0])
    for epoch in (1, 2):
        result = SimpleNamespace(epoch=epoch, loss=1.5, accuracy=0.25, images_per_second=2048.0)
        for _ in range(calls - (done if epoch == 1 else 0)):
            now[0] += seconds
            progress.advance(result)
        progress.restart()
    return stream.getvalue().splitlines()


def test_a_line_comes_every_so_many_seconds():
    shown = lines(seconds=20.0, every=60.0)
    assert [line.partition("  loss")[0] for line in shown] == [
        f"epoch {epoch}/2  host call {call}/10" for epoch in (1, 2) for call in (3, 6, 9)
    ]
    assert shown[0].endswith(
        "loss 1.5000  accuracy 25.0%  2,048 images/s  0:02:20 left of the epoch"
    )
    assert shown[-1].endswith("0:00:20 left of the epoch")


@pytest.mark.parametrize(
    ("seconds", "every", "count"),
    [(1.0, 60.0, 0), (1.0, 0.0, 0), (100.0, 60.0, 18), (10.0, 10.0, 18)],
)
def test_neither_more_nor_fewer(seconds, every, count):
    assert len(lines(seconds, every)) == count


def test_what_is_left_counts_from_where_the_run_went_on():
    first = lines(seconds=20.0, every=60.0, done=6)[0]
    assert "host call 9/10" in first
    assert first.endswith("0:00:20 left of the epoch")
