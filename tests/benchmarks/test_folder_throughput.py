from benchmarks import folder_throughput


def test_rows_at_toy_size():
    rows = list(folder_throughput.measurements(images=3, width=64, height=48, side=64))
    assert [row.unit for row in rows] == ["images/s", "ms"] * 4 + ["images/s"]
    assert all(row.ours > 0 and row.baseline > 0 for row in rows)
    assert [row.more_is_better for row in rows] == [True, False] * 4 + [True]
    assert folder_throughput.SMALL.keys() <= {"images", "workers", "width", "height", "side"}
