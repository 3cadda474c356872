"""Standard output: nothing acts on the terminal by its name, and the stream may fail.

Its reader leaves, its disk is full, it was never open.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from pathlib import Path
from typing import IO, Any, Callable, Iterable, Iterator, NoReturn, Optional, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from ipu_proxynorm.errors import UserError, printable, program_name, say
from ipu_proxynorm.run.interruption import Interruption


class CleanConsole(Console):
    """A console of plain text, to whose terminal nothing but rich itself sends control characters.

    Args:
        file: where the text goes.
        quiet: print nothing.
    """

    def __init__(self, file: Output, quiet: bool = False) -> None:
        super().__init__(
            file=cast(IO[str], file), highlight=False, markup=False, soft_wrap=True, quiet=quiet
        )

    def render_str(self, text: str, **how: Any) -> Text:
        """Return text as it is laid out: cleaned before its width is measured."""
        return super().render_str(printable(text), **how)

    def render(
        self, renderable: RenderableType, options: Optional[ConsoleOptions] = None
    ) -> Iterable[Segment]:
        """Yield what is printed; texts that did not come as strings are cleaned here."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


class CleanParser(argparse.ArgumentParser):
    """A parser whose complaints show what was typed, and send none of it to the terminal."""

    def exit(self, status: int = 0, message: Optional[str] = None) -> NoReturn:
        """Leave with a message."""
        super().exit(status, None if message is None else printable(message))


class ReaderLeft(Exception):
    """Nobody reads what the program prints any more, as behind ``| head``."""


def refuse(error: OSError) -> None:
    """End a command whose result is what it prints.

    Raises:
        ReaderLeft: its reader has left.
        UserError: it cannot be written, e.g. to a full disk.
    """
    if isinstance(error, BrokenPipeError):
        raise ReaderLeft from error
    raise UserError(
        f"what is printed cannot be written ({error.strerror}); send it elsewhere, or free the disk"
    ) from error


class Output(io.TextIOBase):
    """A text stream like ``stream`` that fails once at most.

    Args:
        stream: where the text goes, such as ``sys.stdout``; None: nowhere.
    """

    def __init__(self, stream: Optional[TextIO]) -> None:
        self._stream = stream
        self._lost = stream is None
        #: Told of the first failure; afterwards nothing is written any more.
        self.when_lost: Callable[[OSError], None] = refuse

    def write(self, text: str) -> int:
        """Write text; characters that the stream's encoding lacks become question marks."""
        stream = self._stream
        if self._lost or stream is None:
            return len(text)
        encoding = getattr(stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.encode(encoding, "replace").decode(encoding)
        with self._failing_once():
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        if not self._lost and self._stream is not None:
            with self._failing_once():
                self._stream.flush()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return not self._lost and self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor of the stream.

        Raises:
            OSError: it has none.
        """
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @contextlib.contextmanager
    def _failing_once(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._lost = True
            _discard(self)
            self.when_lost(error)


def _discard(stream: Output) -> None:
    """Let what is still buffered go nowhere, or Python complains of it at its end."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def write_text(path: Path, text: str) -> None:
    """Write the file of ``--output``.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {path}: cannot be written ({error.strerror})") from error


def go_on_silently(error: OSError) -> None:
    """Say once that what is printed is lost; what runs goes on."""
    say(
        f"{program_name()}: warning: what is printed cannot be written ({error.strerror}); "
        f"the run goes on without it"
    )


def open_standard_streams() -> None:
    """Open standard streams that were closed, so that no file of ours takes their numbers."""
    number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    while number < 3:
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  until the program ends


@contextlib.contextmanager
def stopping_when_lost(console: Console, interruption: Interruption) -> Iterator[None]:
    """Let a run whose reader leaves stop with a checkpoint, and one on a full disk go on."""
    output: object = console.file
    if not isinstance(output, Output):
        yield
        return

    def lost(error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            interruption.reader_left()
        else:
            go_on_silently(error)

    former, output.when_lost = output.when_lost, lost
    try:
        yield
    finally:
        output.when_lost = former
