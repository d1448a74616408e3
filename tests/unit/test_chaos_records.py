"""Runs of the chaos suite are written down and read again."""

from __future__ import annotations

from pathlib import Path

import orjson

from tests.chaos.__main__ import RunRecord, read_records, record_of, summary
from tests.chaos.run import RunReport
from tests.chaos.schedule import make_plan


def make_record(seed: int, violations: list[tuple[int, str]]) -> RunRecord:
    return record_of(RunReport(make_plan(seed, 12, 4), violations=violations, seconds=6.0))


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    records = [make_record(seed, []) for seed in range(3)]
    lines = b"".join(orjson.dumps(record) + b"\n" for record in records)
    (tmp_path / "runs.jsonl").write_bytes(lines[:-20])
    assert read_records(tmp_path) == records[:2]
    assert read_records(tmp_path / "nowhere") == []


def test_a_summary_adds_all_runs_up() -> None:
    records = [make_record(1, []), make_record(2, [(7, "result 3 came after 1")])]
    text = summary(records, ["px:{0}:7:m"], "python -m tests.chaos", "3 workers")
    assert "| runs, with a broken promise | 2, 1 |" in text
    assert "| keys left | 1 |" in text
    assert "stream 7: result 3 came after 1" in text
    num_faults = sum(len(make_plan(seed, 12, 4).faults) for seed in (1, 2))
    rows = text.split("| fault | times |")[1].splitlines()[2:]
    assert sum(int(row.split("|")[2]) for row in rows if "|" in row) == num_faults
