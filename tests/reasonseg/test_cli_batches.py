"""Reading ahead and writing behind: whose failure is whose, in which order, and how a run ends early."""

import errno
import threading
import time
import weakref

import pytest

from reasonseg.cli import batches
from reasonseg.cli.batches import save_all


NAMES = [str(number) for number in range(40)]


class Squares:
    """Work on files that are named by numbers. A step that is named fails at a number."""

    def __init__(self, **fails: int):
        self.fails, self.batches, self.written, self.error = fails, [], [], ValueError("bad")

    def _check(self, step: str, *numbers: int) -> None:
        if self.fails.get(step) in numbers:
            raise self.error

    def load(self, name):
        number = int(name)
        self._check("load", number)
        time.sleep(0.002 * (number % 3))
        return number

    def prepare(self, loaded):
        self._check("prepare", *loaded)
        return list(loaded)

    def compute(self, prepared):
        assert threading.current_thread() is threading.main_thread()
        self._check("compute", *prepared)
        self.batches.append(prepared)
        return [number**2 for number in prepared]

    def draw(self, name, number, result):
        self._check("draw", number)
        time.sleep(0.002 * (number % 2))
        return result

    def write(self, name, drawn):
        self._check("write", int(name))
        self.written.append(int(name))
        return {"square": drawn}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", ["load", "prepare", "compute", "draw", "write"])
def test_a_failure_is_that_of_one_item(workers, step, capsys):
    work, shown = Squares(**{step: 4}), []
    failed = save_all(work, NAMES[:9], lambda *given: shown.append(given), 3, "Squaring", workers)
    others = [number for number in range(9) if number != 4]
    assert failed == [4]
    assert shown == [(str(number), {"square": number**2}) for number in others]
    assert work.written == others
    error = capsys.readouterr().err
    assert error.count("error: ") == error.count("error: 4: bad") == 1
    assert "Squaring: 9/9" in error
    if step == "load":
        assert work.batches == [[0, 1, 2], [3, 5], [6, 7, 8]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_ends_the_run(workers):
    work, shown = Squares(write=3), []
    work.error = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="No space left"):
        save_all(work, NAMES, lambda *given: shown.append(given), 1, "Squaring", workers)
    assert [name for name, _ in shown] == NAMES[:3]
    assert len(work.batches) < 15
    check_no_thread_is_left()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stop_keeps_what_is_computed(workers):
    work, compute = Squares(), Squares.compute

    def stop(prepared):
        if prepared == [5]:
            raise KeyboardInterrupt
        return compute(work, prepared)

    work.compute = stop
    with pytest.raises(KeyboardInterrupt):
        save_all(work, NAMES, lambda *given: None, 1, "Squaring", workers)
    assert work.written == [0, 1, 2, 3, 4]
    check_no_thread_is_left()


def test_an_item_is_shown_before_the_next_one_where_a_model_is_slow(monkeypatch):
    monkeypatch.setattr(batches, "_PATIENCE", 100)  # times the time of a batch, so that a busy machine is no failure
    work, compute, shown = Squares(), Squares.compute, []

    def slow(prepared):
        assert [name for name, _ in shown] == NAMES[: prepared[0]]
        time.sleep(0.1)
        return compute(work, prepared)

    work.compute = slow
    assert save_all(work, NAMES[:3], lambda *given: shown.append(given), 1, "Squaring", 2) == []
    assert len(shown) == 3


def check_no_thread_is_left() -> None:
    names = ("read_ahead", "draw", "write")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(names)]


@pytest.mark.parametrize("done", [(), (4,), (0, 1, 2), (3, 5, 8)])
def test_batches_stay_the_same_when_a_part_is_done_already(done, capsys):
    work, everything = Squares(load=7), NAMES[:9]
    pending = [name for name in everything if int(name) not in done]
    failed = save_all(work, pending, lambda *given: None, 3, "Squaring", 2, among=everything)
    assert work.written == [int(name) for name in pending if name != "7"]
    assert [pending[index] for index in failed] == ["7"]
    whole = [[0, 1, 2], [3, 4, 5], [6, 8]]
    assert work.batches == [batch for batch in whole if not set(batch) <= set(done)]
    assert capsys.readouterr().err.count("error") == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_holds_a_few_images_however_many_there_are(workers):
    class Pixels(list):
        """As an image, what can be referred to weakly."""

    class Watched(Squares):
        def __init__(self):
            super().__init__()
            self.alive, self.most = weakref.WeakSet(), 0

        def load(self, name):
            pixels = Pixels([int(name)])
            self.alive.add(pixels)
            return pixels

        def prepare(self, loaded):
            return [pixels[0] for pixels in loaded]

        def draw(self, name, pixels, result):
            return pixels[0], result

        def write(self, name, drawn):
            self.most = max(self.most, len(self.alive))
            return {"square": drawn}

    work = Watched()
    Pixels.__hash__ = object.__hash__
    assert save_all(work, [str(number) for number in range(600)], lambda *given: None, 4, "Squaring", workers) == []
    assert 4 <= work.most <= 40
