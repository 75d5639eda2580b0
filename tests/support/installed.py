"""The `reasonseg` command as it is installed, in a process of its own: nothing that a test has imported helps it."""

import os
import subprocess
import sys
from pathlib import Path


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
    assert result.returncode == code, result.stdout + result.stderr
    assert "custom code" not in result.stderr, "it asked whether to run a repository's code"
    return result
