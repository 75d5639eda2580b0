"""The load test of the server at a size of seconds; the whole one is `python -m benchmarks.serving`."""

from benchmarks.serving import measurements


def test_every_answer_is_the_pipelines_while_clients_leave():
    (row,) = measurements(requests=28, clients=4, batch_size=4)
    assert row.ours > 0 < row.baseline
