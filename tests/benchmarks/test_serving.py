"""The load test of the server at a size of seconds; the whole one is `python -m benchmarks.serving`."""

import pytest

from benchmarks.serving import measurements


@pytest.mark.slow
def test_every_answer_is_the_pipelines_while_clients_leave():
    rows = list(measurements(requests=9, clients=3, batch_size=3))
    assert len(rows) == 3
    assert all(row.ours > 0 < row.baseline for row in rows)
