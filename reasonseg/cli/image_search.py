"""Look for images in files, folders and patterns, and say what is not among them and why."""

import errno
import fnmatch
import functools
import glob
import itertools
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .failures import CommandError, path_text, print_error
from .result_lines import EarlierResults, find_earlier_results


IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# What nobody means when a folder is named, as it is counted.
MAC_NAME = "__MACOSX"
HIDDEN, MAC_FOLDER, RESULTS = "hidden", f"in {MAC_NAME}", "from earlier runs"
_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class FoundImages:
    """
    The images that arguments name, in the order in which they were found, each once.

    Attributes:
        relative_paths: each image with its path relative to the folder that was named, to the part of the pattern
            before the first wildcard, or to its own folder where the file itself was named.
        problems: what cannot be read, with the reason.
        left_out: how many images were passed over, by the reason.
    """

    def __init__(self) -> None:
        self.relative_paths: dict[Path, Path] = {}
        self.problems: dict[Path, str] = {}
        self.left_out: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Path]:
        return iter(self.relative_paths)

    def __len__(self) -> int:
        return len(self.relative_paths)

    def what_was_left_out(self) -> str:
        """Return a sentence that counts what was left out; empty if nothing was."""
        if not self.left_out:
            return ""
        return f"Left out: {', '.join(f'{count} {reason}' for reason, count in sorted(self.left_out.items()))}."

    def report(self, console: Any) -> None:
        """Say on stderr what is not among the images, and why."""
        for path, reason in self.problems.items():
            print_error(f"{path_text(path)}: {reason}.")
        if self.left_out:
            console.print(self.what_was_left_out(), soft_wrap=True)


class ImageSearch:
    """Collects images from one argument after the other.

    Args:
        out: the output folder of this run.
    """

    def __init__(self, out: Path | None = None):
        self.out = None if out is None else os.path.realpath(out)
        self._found: dict[str, tuple[Path, Path]] = {}
        self._problems: dict[Path, str] = {}
        self._left_out: dict[str, str] = {}
        self._walked: set[str] = set()
        self._earlier_results = functools.cache(find_earlier_results)

    @property
    def found(self) -> FoundImages:
        """What was found so far."""
        found = FoundImages()
        found.relative_paths = dict(self._found.values())
        found.problems = self._problems
        found.left_out = Counter(reason for real, reason in self._left_out.items() if real not in self._found)
        return found

    def add(self, argument: str) -> None:
        """Take what one argument names.

        Raises:
            CommandError: it names nothing.
        """
        path, self._walked = Path(argument), set()
        if os.path.isdir(argument):
            results = self._earlier_results(path)
            if results is not None and results.of_mask and os.path.realpath(path) != self.out:
                results = None  # who names masked images means them
            self._walk(path, path, _some(results), ())
        elif os.path.lexists(argument):
            # Who writes photos/* does not mean what this command has put there.
            is_out = os.path.realpath(path.parent) == self.out
            self._take(path, path.parent, _some(self._earlier_results(path.parent) if is_out else None))
        elif not self._add_pattern(argument):
            hint = " A question goes last, in quotes, or after --text." if " " in argument else ""
            raise CommandError(
                f"{path_text(argument)!r} is not an existing file or folder, nor a pattern that matches one.{hint}"
            )

    def _add_pattern(self, argument: str) -> bool:
        pattern, is_matched = Pattern(argument, self._problems.setdefault), False
        for path in pattern.matches():
            is_matched = True
            folders = [pattern.root, *(pattern.root / part for part in path.relative_to(pattern.root).parents)]
            results = [found for folder in dict.fromkeys(folders) for found in _some(self._earlier_results(folder))]
            if MAC_NAME in path.relative_to(pattern.root).parts:
                self._leave_out(path, MAC_FOLDER)
            else:
                self._visit(path, pattern.root, results, ())
        return is_matched

    def _walk(self, folder: Path, root: Path, results: list[EarlierResults], above: tuple[str, ...]) -> None:
        """Visit what is in a folder; `above` are the folders on the way to it."""
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            self._problems.setdefault(folder, f"the folder cannot be read ({error.strerror})")
            return
        above = (*above, os.path.realpath(folder))
        for name in names:
            if name == MAC_NAME:
                self._leave_out(folder / name, MAC_FOLDER)
            elif name.startswith("."):
                self._leave_out(folder / name, HIDDEN)
            else:
                self._visit(folder / name, root, results, above)

    def _visit(self, path: Path, root: Path, results: list[EarlierResults], above: tuple[str, ...]) -> None:
        """Take a file, or enter a folder, that was not named by its own name."""
        if not os.path.isdir(path):
            if _is_image_name(path) or _is_dead_link_to_a_folder(path):
                self._take(path, root, results)
            return
        real = os.path.realpath(path)
        if real == self.out:
            self._leave_out(path, RESULTS)
        elif real in above or (path.is_symlink() and path.parent.resolve().is_relative_to(real)):
            self._problems.setdefault(path, "a link to a folder that it lies in")
        elif real not in self._walked:
            self._walked.add(real)
            self._walk(path, root, [*results, *_some(self._earlier_results(path))], above)

    def _take(self, path: Path, root: Path, results: list[EarlierResults]) -> None:
        problem, real = _problem_of(path), os.path.realpath(path)
        if problem is not None:
            self._problems.setdefault(path, problem)
        elif any(one.holds(path) for one in results):
            self._left_out[real] = RESULTS
        else:
            self._found.setdefault(real, (path, path.relative_to(root)))

    def _leave_out(self, path: Path, reason: str) -> None:
        """Count the images in a folder, or a file if it is one."""
        if os.path.isdir(path) and not path.is_symlink():
            files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names]
        else:
            files = [path]
        self._left_out.update((os.path.realpath(file), reason) for file in files if _is_image_name(file))


class Pattern:
    """What a pattern of the shell matches, without following links in circles.

    Args:
        pattern: with `*`, `?`, `[...]`; `**` stands for any number of folders. Without a wildcard it matches nothing.
        on_problem (`Callable`, *optional*): called with a folder that cannot be read and the reason.
    """

    def __init__(self, pattern: str, on_problem: Callable[[Path, str], Any] = lambda folder, reason: None):
        parts = Path(pattern).parts
        plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), parts))
        self.root, self._parts = Path(*plain), parts[len(plain) :]
        self._on_problem = on_problem

    def matches(self) -> Iterator[Path]:
        """Files and folders; hidden ones only where the pattern has their dot."""
        return self._below(self.root, self._parts) if self._parts else iter(())

    def _below(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        part, rest = parts[0], parts[1:]
        if part == "**":
            matched: Iterator[Path] = self._folders(folder, set())
        elif glob.has_magic(part):
            names = [name for name in self._names(folder) if part[0] == "." or name[0] != "."]
            matched = (folder / name for name in fnmatch.filter(names, part))
        else:
            matched = (path for path in (folder / part,) if os.path.lexists(path))
        for path in matched:
            yield from self._below(path, rest) if rest else (path,)

    def _names(self, folder: Path) -> list[str]:
        try:
            return sorted(os.listdir(folder))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                self._on_problem(folder, f"the folder cannot be read ({error.strerror})")
            return []

    def _folders(self, folder: Path, known: set[str]) -> Iterator[Path]:
        """The folder and those in it at every depth, each once."""
        real = os.path.realpath(folder)
        if real in known or not os.path.isdir(folder):
            return
        known.add(real)
        yield folder
        for name in self._names(folder):
            if name[0] != ".":
                yield from self._folders(folder / name, known)


def _some(results: EarlierResults | None) -> list[EarlierResults]:
    return [] if results is None else [results]


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _is_dead_link_to_a_folder(path: Path) -> bool:
    """Whether a link is broken and its name does not rule out that it led to a folder."""
    return not path.suffix and path.is_symlink() and _problem_of(path) is not None


def _problem_of(path: Path) -> str | None:
    """Why a path is not a file that could be read; `None` if it is one."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads back to itself"
        if error.errno == errno.ENOENT and path.is_symlink():
            return f"a link to {path_text(os.readlink(path))!r}, which does not exist"
        return f"it cannot be read ({error.strerror})"
    return None if stat.S_ISREG(mode) else f"{_KINDS.get(stat.S_IFMT(mode), 'something else')}, not a file"


__all__ = ["IMAGE_SUFFIXES", "FoundImages", "ImageSearch", "Pattern"]
