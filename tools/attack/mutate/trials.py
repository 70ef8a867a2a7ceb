"""Runs the tests of a room on one mutant, in a forked child: the shortest tests that run its line.

The packages of others are imported once, before the first fork; the project's own modules anew in every child.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from itertools import accumulate
from tempfile import TemporaryFile
from types import CodeType, FrameType
from typing import Any

import hypothesis
import pytest

from tools.attack.mutate.mutants import Mutant, code_of
from tools.attack.mutate.rooms import ROOT, Room

_OWN = ("mint", "cluster", "tests", "tools", "conftest")
_SECONDS = 8.0  # of tests for one mutant, as long as they took while they were traced
_CALLS = 100  # of a function in a test, whose lines are recorded
_PATIENCE = 60.0  # seconds without an end, beyond forty times those of the tests


@dataclass(slots=True)
class Tests:
    """The tests of a room: the seconds of each, and the tests that run each line of a file."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[int, set[str]]] = field(default_factory=dict)

    def of(self, file: str, mutant: Mutant) -> list[str]:
        """The tests that run a line of the mutant, the shortest first.

        All tests, if a line runs when the file is imported or if results of the function are kept.

        Long tests are left out where others of some seconds are there.
        """
        names = set().union(*(self.lines[file].get(line, set()) for line in mutant.lines))
        ordered = sorted(
            self.seconds if "" in names or mutant.is_cached else names, key=lambda name: (self.seconds[name], name)
        )
        ends = accumulate(self.seconds[name] for name in ordered)
        return [name for name, end in zip(ordered, ends, strict=True) if end < _SECONDS] or ordered[:1]


class _Recording:
    """A plugin of pytest that records the seconds of each test and the lines that it runs."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = {str(ROOT / file): file for file in files}
        self._test = ""
        self._calls: Counter[CodeType] = Counter()  # in the test
        self.seconds: dict[str, float] = {}
        self.lines: dict[str, dict[int, set[str]]] = {file: {} for file in files}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self._test = item.nodeid
        self._calls.clear()
        started = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - started
        self._test = ""
        return result

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        file = self._files.get(frame.f_code.co_filename)
        if file is None:
            return None
        self._calls[frame.f_code] += 1
        if self._calls[frame.f_code] > _CALLS:
            return None
        lines = self.lines[file]

        def note(frame: FrameType, event: str, argument: object) -> Any:
            lines.setdefault(frame.f_lineno, set()).add(self._test)
            return note

        return note(frame, event, argument)


class _Selected:
    """A plugin of pytest that runs the named tests only, in their order."""

    def __init__(self, names: Sequence[str]) -> None:
        self._rank = {name: rank for rank, name in enumerate(names)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self._rank), key=lambda i: self._rank[i.nodeid])


class _Loader(SourceFileLoader):
    """Loads a module from code that was changed, without a file."""

    def __init__(self, name: str, path: str, code: CodeType) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> CodeType:
        return self._code


class _Finder:
    """Finds the one module that is changed."""

    def __init__(self, file: str, code: CodeType) -> None:
        self._name, self._path, self._code = file.removesuffix(".py").replace("/", "."), str(ROOT / file), code

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        return spec_from_file_location(name, self._path, loader=_Loader(name, self._path, self._code))


def survey(room: Room) -> Tests:
    """Run the tests of a room without a change, and import what they import; `RuntimeError` if one of them fails."""
    with TemporaryFile("w+") as file:
        code = _in_child(lambda: _survey(room, file), None)
        if code:
            raise RuntimeError(f"the tests {', '.join(room.tests)} fail without a change, with exit code {code}")
        file.seek(0)
        record = json.load(file)
    for name in record["modules"]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    lines = {file: {int(line): set(names) for line, names in own.items()} for file, own in record["lines"].items()}
    return Tests(record["seconds"], lines)


def _survey(room: Room, file: Any) -> int:
    recording = _Recording(room.files)
    threading.settrace(recording.trace)
    sys.settrace(recording.trace)
    code = _pytest(room.tests, recording)
    sys.settrace(None)
    lines = {name: {line: sorted(tests) for line, tests in own.items()} for name, own in recording.lines.items()}
    modules = [name for name in sys.modules if name.split(".")[0] not in _OWN]
    json.dump({"seconds": recording.seconds, "lines": lines, "modules": modules}, file)
    file.flush()
    return code


def is_noticed(room: Room, tests: Tests, file: str, mutant: Mutant) -> bool:
    """True if a test fails, or does not end, with this change."""
    names = tests.of(file, mutant)
    if not names:
        return False
    code = code_of((ROOT / file).read_text(), str(ROOT / file), mutant)
    files = tuple(dict.fromkeys(name.split("::")[0] for name in names))
    return _in_child(lambda: _try(files, names, file, code), sum(map(tests.seconds.__getitem__, names))) != 0


def _try(files: Sequence[str], names: Sequence[str], file: str, code: CodeType) -> int:
    sys.meta_path.insert(0, _Finder(file, code))
    return _pytest(files, _Selected(names))


def _pytest(files: Sequence[str], plugin: object) -> int:
    for name in [name for name in sys.modules if name.split(".")[0] in _OWN[:3]]:
        del sys.modules[name]
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutate", database=None, derandomize=True, phases=phases, deadline=None)
    hypothesis.settings.load_profile("mutate")
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:schemathesis", "--tb=no", "--no-header"]
    return int(pytest.main([*options, *files], plugins=[plugin]))


def _in_child(work: Callable[[], int], seconds: float | None) -> int:
    """The exit code of `work` in a child, below 0 where it had to be killed."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        code = 70
        try:
            os.setsid()
            os.chdir(ROOT)
            if seconds is not None:
                limit = int(2 * seconds + 5)
                resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
                resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
                null = os.open(os.devnull, os.O_RDWR)
                for descriptor in range(3):
                    os.dup2(null, descriptor)
            code = work()
            sys.stdout.flush()
        finally:
            os._exit(code)
    descriptor = os.pidfd_open(pid)
    wait = None if seconds is None else 40 * seconds + _PATIENCE
    has_ended, _, _ = select.select([descriptor], [], [], wait)
    os.close(descriptor)
    if not has_ended:
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
