"""Frames of an .xyz file, cut apart before ASE reads them, so that one bad frame does not hide the good ones.

3                 a number of atoms
water             a comment
O 0 0 0.119       as many lines of atoms
...
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TextIO

from consilience.core.errors import ConsilienceError


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame of a file, or lines that are none.

    Args:
        line: the number of its first line, from 1.
        text: its lines.
        problem: why they are no frame; None for one that ASE may read.
    """

    line: int
    text: str
    problem: str | None = None


def cut_frames(path: Path) -> Iterator[Frame]:
    """The frames of a file in order. After a broken one, reading goes on where a whole frame stands.

    Raises:
        ConsilienceError: the first line holds no number of atoms: the file is no .xyz.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = _Lines(file)
        known = False
        while lines.skip_blank():
            line = lines.peek()
            count = _count(line)
            if count is not None:
                frame = _frame(lines, count)
            else:
                problem = f"should hold a number of atoms, not {line.strip()[:40]!r}"
                if not known:
                    raise ConsilienceError(f"{path}: line {lines.taken + 1} {problem}")
                frame = Frame(line=lines.taken + 1, text="", problem=problem)
            known = True
            yield frame if frame.problem is None else _with_rest(lines, frame)


class _Lines:
    """Lines of a file that can be looked at before they are taken.

    Args:
        file: open.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.held: deque[str] = deque()
        self.taken = 0

    def peek(self) -> str:
        """The next line; "" at the end of the file."""
        return next(self.ahead(), "")

    def ahead(self) -> Iterator[str]:
        """The next lines, which stay to be taken."""
        yield from tuple(self.held)
        for line in self.file:
            self.held.append(line)
            yield line

    def take(self) -> str:
        """The next line, taken; "" at the end of the file."""
        line = self.held.popleft() if self.held else self.file.readline()
        self.taken += bool(line)
        return line

    def skip_blank(self) -> bool:
        """Take blank lines; whether something stands after them."""
        while (line := self.peek()) and not line.strip():
            self.take()
        return bool(line)


def _count(line: str) -> int | None:
    """The number of atoms that a line holds alone, or None."""
    text = line.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _frame(lines: _Lines, count: int) -> Frame:
    """The frame that begins at the next line, with a problem where its number of atoms is wrong."""
    first = lines.taken + 1
    text = [lines.take(), lines.take()]
    while len(text) < count + 2 and (line := lines.peek()).strip() and _count(line) is None:
        text.append(lines.take())
    found = len(text) - 2
    problem = None
    if found < count:
        ends = lines.skip_blank()
        problem = f"says {count} atoms, but {'has' if ends else 'the file is cut short after'} {found}"
    elif count and _numbers(text[-1]) >= 3 and _kinds(lines.peek()) == _kinds(text[-1]):
        problem = f"says {count} atoms, but more follow at line {lines.taken + 1}"
    return Frame(line=first, text="".join(text), problem=problem)


def _with_rest(lines: _Lines, broken: Frame) -> Frame:
    """A broken frame with all lines before the next whole one."""
    last = 0
    while lines.skip_blank() and not _whole(lines):
        lines.take()
        last = lines.taken
    told = f"; all up to line {last} is left out with it" if last else ""
    return replace(broken, problem=f"{broken.problem}{told}")


def _whole(lines: _Lines) -> bool:
    """Whether a frame stands next whose lines of atoms hold three numbers each and end where they should."""
    ahead = lines.ahead()
    count = _count(next(ahead, ""))
    if not count:
        return False
    next(ahead, "")  # the comment
    found = 0
    for line in islice(ahead, count):
        if _numbers(line) < 3:
            return False
        found += 1
    after = next(ahead, "")
    return found == count and (not after.strip() or _count(after) is not None)


def _kinds(line: str) -> list[bool]:
    """For each word of a line whether it is a number."""
    return [_is_number(word) for word in line.split()]


def _numbers(line: str) -> int:
    return sum(_kinds(line))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
