"""Runs in forks of one process that has imported everything, so that a run that is killed costs no imports."""

import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable


def start(run: Callable[[], object]) -> int:
    """Fork a process that calls `run`; it ends with 0, with the code of a SystemExit, or with 1."""
    sys.stdout.flush()
    gc.freeze()  # no fork copies what it never changes, only to see whether it is garbage
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        run()
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def has_ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG) != (0, 0)


def wait_until(condition: Callable[[], object], child: int) -> float:
    """The time at which it came true; the child must live until then."""
    while not condition():
        assert not has_ended(child), "the run ended by itself"
        time.sleep(0.001)
    return time.monotonic()


def kill(child: int) -> None:
    """Kill a process that still runs."""
    os.kill(child, signal.SIGKILL)
    assert end(child) == -signal.SIGKILL, "it ended before it was killed"


def end(child: int) -> int:
    """Wait for the end; returns the exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
