"""JSON, JSONL, CSV and Parquet: what a malformed record costs, and which line it is said to be."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.formats.containers import Record, records, save
from vidqa.errors import UsageError


def found(path: Path, content: str | bytes) -> list[Record]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(records(path))


def test_a_malformed_line_costs_that_line_only(tmp_path: Path) -> None:
    data = b'\xef\xbb\xbf{"a": 1}\n\n{"a": 2,}\n{"a": "\xff"}\n{"a": "\\ud800"}\n{"a": 3}'
    got = found(tmp_path / "a.jsonl", data)
    assert [(one.line, one.value) for one in got] == [
        (1, {"a": 1}),
        (3, None),
        (4, None),
        (5, None),
        (6, {"a": 3}),
    ]
    assert [one.fault and one.fault.split(":")[0] for one in got[1:4]] == [
        "is not JSON",
        "is not UTF-8",
        "holds half of a character (a lone surrogate); write it in UTF-8",
    ]


def test_a_line_nested_without_end_is_a_fault_and_no_crash(tmp_path: Path) -> None:
    deep, after = found(tmp_path / "a.jsonl", '{"a":' * 100_000 + '\n{"a": 1}')
    assert deep.fault is not None
    assert after.value == {"a": 1}


def test_elements_of_a_list_have_the_lines_on_which_they_begin(tmp_path: Path) -> None:
    text = '[\n  {\n    "a": 1\n  },\n\n  {"a": 2}, {"a": "]\\n"}\n]\n'
    assert found(tmp_path / "a.json", text) == [
        Record(2, {"a": 1}),
        Record(6, {"a": 2}),
        Record(6, {"a": "]\n"}),
    ]


@pytest.mark.parametrize(
    ("text", "line", "fault"),
    [
        ('[{"a": 1},\n{"a" 2},\n{"a": 3}]', 2, "is not JSON: Expecting ':' delimiter; what"),
        ('[{"a": 1}\n{"a": 2}]', 2, "a comma was expected; what follows in this file"),
        ('[{"a": 1},\n', 2, "the list does not end; the file was cut off"),
    ],
)
def test_a_malformed_element_ends_a_list_and_says_so(
    tmp_path: Path, text: str, line: int, fault: str
) -> None:
    first, last = found(tmp_path / "a.json", text)
    assert first.value == {"a": 1}
    assert last.line == line
    assert fault in (last.fault or "")


def test_lines_that_somebody_called_json_are_read_as_lines(tmp_path: Path) -> None:
    assert found(tmp_path / "a.json", '{"a": 1}\n{"a": 2}\n') == [
        Record(1, {"a": 1}),
        Record(2, {"a": 2}),
    ]
    (one,) = found(tmp_path / "b.json", '{"a": 1,\n "b" 2}')
    assert one.line == 2
    assert one.fault == "is not JSON: Expecting ':' delimiter (column 6)"


def test_rows_of_a_table_have_their_true_lines_also_after_long_and_malformed_ones(
    tmp_path: Path,
) -> None:
    text = 'a,b\n1,"x\ny"\nonly\n\n"2,5",z\n3,4,5\n6,\n'
    assert found(tmp_path / "a.csv", text) == [
        Record(2, {"a": "1", "b": "x\ny"}),
        Record(4, None, "has 1 cells, and the header 2"),
        Record(6, {"a": "2,5", "b": "z"}),
        Record(7, None, "has 3 cells, and the header 2"),
        Record(8, {"a": "6"}),
    ]
    bad = found(tmp_path / "b.csv", b"a,b\n1,\xff\n2,3\n")
    assert [one.fault for one in bad] == ["is not UTF-8", None]


def test_a_table_may_be_parted_by_semicolons_or_tabs(tmp_path: Path) -> None:
    for mark in ";\t|":
        text = f'"a,b,c"{mark}d\n1,2{mark}x\n'
        assert found(tmp_path / "a.csv", text) == [Record(2, {"a,b,c": "1,2", "d": "x"})]


def test_parquet_of_other_tools_has_lists_and_structures(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    duckdb.sql(
        "SELECT [{'role': 'user', 'content': 'Hi', 'loss': NULL}] AS messages, "
        "['a.mp4'] AS videos, 7 AS id"
    ).write_parquet(str(path))
    assert list(records(path)) == [
        Record(1, {"messages": [{"role": "user", "content": "Hi"}], "videos": ["a.mp4"], "id": 7})
    ]


def test_parquet_is_written_with_the_types_that_other_tools_expect(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    save(path, [{"messages": [{"role": "user", "n": 1}], "day": "2024-01-01"}, {"mixed": 1.5}])
    columns = duckdb.sql(f"DESCRIBE SELECT * FROM '{path}'").fetchall()
    assert [(name, kind) for name, kind, *_ in columns] == [
        ("messages", 'STRUCT("role" VARCHAR, n BIGINT)[]'),
        ("day", "VARCHAR"),
        ("mixed", "DOUBLE"),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_damaged_table_is_an_error_of_one_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".csv":
        (record,) = found(path, 'a,b\n"x,1\n')
        assert record.fault == "is not CSV: unexpected end of data"
        return
    path.write_bytes(b"PAR1 nothing")
    with pytest.raises(UsageError, match=r"a\.parquet: is not Parquet: [^\n]+$"):
        list(records(path))


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save(tmp_path / "a.jsonl", [{"a": 1}, {"a": object()}])
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="name a file to write"):
        save(tmp_path / "file" / "a.jsonl", [{"a": 1}])
    with pytest.raises(UsageError, match="there is no row to write"):
        save(tmp_path / "a.csv", [])


values = st.recursive(
    st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abAB ", max_size=2), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from("abcd"), values, min_size=1), min_size=1, max_size=4
    )
)
def test_lines_and_lists_hold_any_record_and_parquet_any_that_agree(
    tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    for suffix in (".jsonl", ".json"):
        save(tmp_path / f"a{suffix}", rows)
        assert [one.value for one in records(tmp_path / f"a{suffix}")] == rows
    alike = [rows[0]] * 3
    save(tmp_path / "a.parquet", alike)
    got = [one.value for one in records(tmp_path / "a.parquet")]
    assert len(got) == 3
    for key, value in rows[0].items():
        if isinstance(value, str | bool):
            assert got[0][key] == value
