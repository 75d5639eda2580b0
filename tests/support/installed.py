"""The `reasonseg` command as it is installed, in a process of its own: nothing that a test has imported helps it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.forked_python import fork_server


EXECUTABLE = Path(sys.executable).parent / "reasonseg"


def installed(*arguments: object, code: int = 0, cwd: Path | None = None, **environment: str):
    """Run the installed command without a terminal, and check its exit code.

    Args:
        arguments: what stands after `reasonseg`.
        code: the exit code it must have.
        cwd: where it runs.
        environment: variables that differ from this process's.

    Returns:
        `subprocess.CompletedProcess`: with `stdout` and `stderr` as text.
    """
    assert EXECUTABLE.is_file(), f"{EXECUTABLE} is not there: install the package (`pip install -e .`)."
    result = subprocess.run(
        [str(EXECUTABLE), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return _checked(result, code)


def forked(*arguments: object, code: int = 0, cwd: Path | None = None, **environment: str):
    """Run the installed command as `installed` does, in a fork of a process that has imported torch and transformers.

    It spares the seconds that this takes where one start from nothing has been tested already.
    """
    env = {**os.environ, **environment}
    return _checked(fork_server(env=env).run(EXECUTABLE, *arguments, cwd=cwd, env=env), code)


def _checked(result: subprocess.CompletedProcess, code: int) -> subprocess.CompletedProcess:
    assert result.returncode == code, result.stdout + result.stderr
    assert "custom code" not in result.stderr, "it asked whether to run a repository's code"
    return result
