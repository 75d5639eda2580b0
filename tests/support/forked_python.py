"""Processes of Python that start in a moment: forks of one that has imported torch, and nothing of this package.

Importing torch and transformers takes several seconds, whatever is done then. A fork of a process that has done so
runs a program as `python PROGRAM` would, with arguments, folder, environment, input and output of its own; neither
what tests have imported nor what other programs have done is in it.

As a program, `forked_python.py CHANNEL MODULES...` is the process that is forked.
"""

import array
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from pathlib import Path


# Read while modules are imported: a process that has imported them with another value must not be forked.
READ_BY_IMPORTS = ("HF_", "PYTHON", "OMP_", "TRANSFORMERS_")
# All of torch that transformers imports, which is most of what takes time.
TORCH = ("torch", "torch._dynamo", "torch.distributed.tensor", "torch.export", "numpy", "PIL.Image")
TORCH_AND_TRANSFORMERS = (*TORCH, "transformers.models.auto.modeling_auto", "transformers.pipelines", "accelerate")
MAX_MESSAGE = 1 << 17


class ForkServer:
    """A process that has imported `modules`, and whose forks run programs.

    Args:
        modules: names of the modules to import.
        env: the environment of the process; that of this one unless given.
    """

    def __init__(self, modules: tuple[str, ...], env: dict[str, str] | None = None):
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno()), *modules]
            self._process = subprocess.Popen(
                command, cwd="/", env=env, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )

    def start(
        self, *command: object, input: str = "", cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> "ForkedProcess":
        """Start `python COMMAND`: a script, `-c` with code or `-m` with a module, and what follows it.

        Args:
            input: what it reads from standard input.
            cwd: the folder it runs in, this process's unless given.
            env: its environment, this process's unless given.
        """
        program = {
            "command": [os.fspath(part) if isinstance(part, os.PathLike) else str(part) for part in command],
            "cwd": os.fspath(cwd or Path.cwd()),
            "env": dict(os.environ if env is None else env),
        }
        message = json.dumps(program).encode()
        assert len(message) < MAX_MESSAGE
        output = [tempfile.TemporaryFile(), tempfile.TemporaryFile()]  # noqa: SIM115 - the process closes them
        reports, theirs = os.pipe()
        with tempfile.TemporaryFile() as given, open(theirs, "wb"):
            given.write(input.encode())
            given.seek(0)
            files = [given.fileno(), *(file.fileno() for file in output), theirs]
            socket.send_fds(self._channel, [message], files)
        return ForkedProcess(program["command"], output, open(reports, "rb", buffering=0))

    def run(self, *command: object, timeout: float = 300, **options) -> subprocess.CompletedProcess:
        """Run `python COMMAND` to its end; see `start`."""
        process = self.start(*command, **options)
        stdout, stderr = process.communicate(timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


class ForkedProcess:
    """A program that runs in a fork; named as in `subprocess.Popen`."""

    def __init__(self, args, output, reports):
        self.args, self._output, self._reports = args, output, reports
        self.pid = self._read()
        self.returncode = None

    def _read(self) -> int:
        number = self._reports.read(8)
        assert len(number) == 8, "the process that is forked has ended"
        return array.array("q", number)[0]

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        if self.returncode is None and select.select([self._reports], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Wait for its end; kills it after `timeout` seconds."""
        if self.returncode is None:
            ended = select.select([self._reports], [], [], timeout)[0]
            if not ended:
                self.kill()
            self.returncode = self._read()
            self._reports.close()
            if not ended:
                raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def kill(self) -> None:
        """Kill it if it still runs."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Wait for its end, and return what it wrote to standard output and standard error."""
        self.wait(timeout)
        texts = []
        for file in self._output:
            with file:
                file.seek(0)
                texts.append(file.read().decode())
        return texts[0], texts[1]


@functools.cache
def _server(modules: tuple[str, ...], read_by_imports: tuple[tuple[str, str], ...]) -> ForkServer:
    # It ends with this process: then its channel is closed.
    return ForkServer(modules, {**os.environ, **dict(read_by_imports)})


def fork_server(modules: tuple[str, ...] = TORCH_AND_TRANSFORMERS, env: dict[str, str] | None = None) -> ForkServer:
    """The process whose forks have imported `modules` in the environment `env`; the tests of a process share it."""
    env = dict(os.environ if env is None else env)
    return _server(modules, tuple(sorted(item for item in env.items() if item[0].startswith(READ_BY_IMPORTS))))


def run_distributed(*command: object, processes: int) -> list[subprocess.CompletedProcess]:
    """Run `python COMMAND` on the CPU in several processes that know each other, as `torchrun` starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    if processes > 1:
        env |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        started.append(fork_server().start(*command, env={**env, **own}))
    # Whoever waits for a process that has failed would wait for ever.
    while None in (codes := [process.poll() for process in started]):
        if any(codes):
            for process in started:
                process.kill()
        time.sleep(0.01)
    outputs = [process.communicate() for process in started]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]


def _serve(channel: socket.socket) -> list[str]:
    """Fork whenever a message comes. Returns only in the forks, with the command each of them has to run."""
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    reports: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([channel, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            while reports and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                report = reports.pop(ended[0])
                _write(report, os.waitstatus_to_exitcode(ended[1]))
                os.close(report)
        if channel in ready:
            message, files, _, _ = socket.recv_fds(channel, MAX_MESSAGE, 4)
            if not message:
                os._exit(0)
            *files, report = files
            if (child := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number in (woken, wake, report, *reports.values()):
                    os.close(number)
                channel.close()
                return _become(json.loads(message), files)
            reports[child] = report
            _write(report, child)
            for number in files:
                os.close(number)


def _write(report: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever started it may have ended
        os.write(report, array.array("q", [number]).tobytes())


def _become(program: dict, files: list[int]) -> list[str]:
    os.chdir(program["cwd"])
    os.environ.clear()
    os.environ.update(program["env"])
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    return program["command"]


def _run(command: list[str]) -> None:
    """What `python COMMAND` does."""
    first, *rest = command
    if first == "-c":
        code, *arguments = rest
        sys.argv, sys.path[0] = ["-c", *arguments], ""
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), main.__dict__)  # noqa: S102 - what -c is for
    elif first == "-m":
        name, *arguments = rest
        sys.argv, sys.path[0] = [name, *arguments], os.getcwd()
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = command, str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def _end_as_python_ends(command: list[str]) -> None:
    """Run a program and end with its exit code, without taking apart what was imported: in a fork it takes seconds."""
    code = 0
    try:
        _run(command)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        code = 1
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    for _module in sys.argv[2:]:
        importlib.import_module(_module)
    assert not any(name.split(".")[0] in ("reasonseg", "tests") for name in sys.modules)
    gc.collect()
    gc.freeze()  # no fork copies what it never changes, only to see whether it is garbage
    _end_as_python_ends(_serve(socket.socket(fileno=int(sys.argv[1]))))
