"""Threads that read ahead: order, how far, and what is raised when."""

import threading
import time

import pytest

from reasonseg.data.reading_ahead import read_ahead


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order(workers):
    def read(number: int) -> int:
        time.sleep(0.01 * (number % 3 == 0))
        return number**2

    assert list(read_ahead(read, iter(range(12)), workers)) == [number**2 for number in range(12)]
    assert list(read_ahead(read, [], workers)) == []


def test_so_many_are_read_ahead_and_the_first_alone():
    taken, at_once, most = [], set(), 0

    def items():
        for number in range(10):
            taken.append(number)
            yield number

    def read(number: int) -> int:
        nonlocal most
        at_once.add(number)
        most = max(most, len(at_once))
        assert number == 0 or 0 not in at_once
        time.sleep(0.02)
        at_once.discard(number)
        return number

    results = read_ahead(read, items(), workers=3)
    assert next(results) == 0
    assert taken == [0, 1, 2, 3]
    assert [next(results), next(results)] == [1, 2]
    assert taken == list(range(6))
    results.close()
    assert 1 < most <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read_ahead")]


def test_an_error_comes_in_its_turn():
    def read(number: int) -> int:
        if number == 2:
            raise ValueError("no image")
        return number

    results = read_ahead(read, range(5), workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="no image"):
        next(results)
