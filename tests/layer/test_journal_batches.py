"""The journal's notes of commits that carry a marker: durable, checked, and never in the way."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from beastmode.errors import JournalError, JournalFull
from beastmode.journal import Journal
from beastmode.stores.documents import Set

NAME = "ab" * 16


def writes(count: int) -> list[Set]:
    return [Set(f"k/{n}", {"n": n}) for n in range(count)]


def test_a_noted_batch_comes_back_until_it_is_answered(journal: Journal, place: Path) -> None:
    journal.append(writes(9))
    journal.note_sent(NAME, [1, 2, 3, 7, 5])
    journal.close()
    again = Journal(place)
    assert again.recover_batches() == ([(NAME, [1, 2, 3, 5, 7])], [])
    again.acknowledge([1, 2, 3, 5, 7], NAME, 123.5)
    assert again.recover_batches() == ([], [(NAME, 123.5)])
    assert not again.is_settled
    again.confirm([NAME])
    again.acknowledge([4, 6, 8, 9])
    again.sync()
    assert not again.is_settled, "its marker has still to go"
    again.forget([NAME])
    again.sync()
    assert again.is_settled
    again.close()


def test_the_batches_are_counted_without_reading_them(journal: Journal, place: Path) -> None:
    journal.append(writes(9))
    statements: list[str] = []
    journal._database.connection.set_trace_callback(statements.append)
    batches = journal._database.batches
    names = [f"{n:032x}" for n in range(9)]
    for n, name in enumerate(names):
        journal.note_sent(name, [n + 1])
        journal.note_sent(name, [n + 1])
        assert batches.count == n + 1, "the same note again is no other batch"
    journal.acknowledge(list(range(1, 7)), names[0], 0.0)
    for name in names[1:6]:
        journal.release(name, 0.0)
    journal.sync()
    assert batches.count == 9, "their markers have still to go"
    journal.forget([*names[:4], "cd" * 16])
    journal.forget(names[:4])
    journal.sync()
    assert batches.count == 5
    assert not [text for text in statements if "count(" in text]
    batches.recount()
    assert batches.count == 5
    journal.close()
    again = Journal(place)
    assert again._database.batches.count == 5
    again.close()


def test_a_note_that_failed_is_not_counted(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append(writes(2))
    batches = journal._database.batches

    def full(*args: object) -> None:
        raise sqlite3.OperationalError("disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(batches, "confirm", full)
        with pytest.raises(JournalError):
            journal.note_sent(NAME, [1, 2])
    assert batches.count == 0
    batches.recount()
    assert batches.count == 0


def test_a_released_batch_frees_its_operations(journal: Journal) -> None:
    journal.append(writes(2))
    journal.note_sent(NAME, [1, 2])
    journal.release(NAME, 0.0)
    assert journal.recover_batches() == ([], [(NAME, 0.0)])
    assert len(journal.recover()) == 2


@pytest.mark.parametrize(
    "change",
    [
        "members = x'5b5b312c315d5d'",
        "checksum = x'00'",
        "members = NULL",
        "id = 'not a name'",
        "state = 77",
    ],
)
def test_a_damaged_note_is_told_and_its_operations_are_replayed(
    journal: Journal, place: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal.append(writes(3))
    journal.note_sent(NAME, [1, 2, 3])
    journal.close()
    with sqlite3.connect(place) as connection:
        connection.execute(f"UPDATE batches SET {change}")
    connection.close()
    again = Journal(place)
    assert again.recover_batches() == ([], [])
    assert "damaged note" in caplog.text
    assert again.get_stats().corrupt == 1
    assert len(again.recover()) == 3
    assert again.recover_batches() == ([], [])
    assert caplog.text.count("damaged note") == 1, "told once"
    again.acknowledge([1, 2, 3])
    again.sync()
    assert again.is_settled, "it is kept, but nothing is left to be done"
    again.close()
    once_more = Journal(place)
    assert once_more.get_stats().corrupt == 1
    once_more.close()


def test_a_journal_of_the_first_format_is_taken_over(journal: Journal, place: Path) -> None:
    journal.append(writes(3))
    journal.close()
    with sqlite3.connect(place) as connection:
        connection.execute("DROP TABLE batches")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    again = Journal(place)
    assert len(again.recover()) == 3
    again.note_sent(NAME, [1])
    assert again.recover_batches() == ([(NAME, [1])], [])
    again.close()


def test_notes_are_on_the_disk_itself_and_appends_are_as_before(journal: Journal) -> None:
    levels: list[int] = []
    run = journal._database.connection.execute
    real = journal._database._write_batches

    def look(*args: object) -> bool:
        levels.append(run("PRAGMA synchronous").fetchone()[0])
        return real(*args)  # type: ignore[arg-type]

    journal._database._write_batches = look  # type: ignore[method-assign,assignment]
    journal.append(writes(1))
    journal.note_sent(NAME, [1])
    journal.append(writes(1))
    journal.acknowledge([1], NAME)
    journal.confirm([NAME])
    assert levels[:3] == [1, 2, 1]
    assert levels[-1] == 2


def test_a_full_journal_still_notes_what_makes_room(place: Path) -> None:
    journal = Journal(place, max_bytes=256 * 1024)
    seqs: list[int] = []
    with pytest.raises(JournalFull):
        while True:
            seqs += journal.append([Set("k/1", {"text": "x" * 4000})])
    journal.note_sent(NAME, seqs)
    journal.acknowledge(seqs, NAME)
    journal.forget([NAME])
    journal.sync()
    assert journal.is_settled
    journal.append([Set("k/1", {"text": "x" * 4000})])
    journal.close()


def test_a_note_is_not_made_before_the_answers_handed_over_earlier(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may end another batch of the same operations."""
    journal.append(writes(2))
    journal.note_sent(NAME, [1, 2])
    real = journal._database.write

    def full(*args: object) -> object:
        if args[2]:
            raise JournalFull("no room")
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(journal._database, "write", full)
    journal.release(NAME, 0.0)
    with pytest.raises(JournalFull):
        journal.note_sent("cd" * 16, [1, 2])
    monkeypatch.undo()
    journal.note_sent("cd" * 16, [1, 2])
    assert journal.recover_batches() == ([("cd" * 16, [1, 2])], [(NAME, 0.0)])


def test_a_disk_that_does_not_answer_is_not_waited_for(journal: Journal) -> None:
    with journal._io, pytest.raises(JournalError, match="before the deadline"):
        journal.note_sent(NAME, [1], deadline=0.0)
    journal.sync()
    errors: list[BaseException] = []

    def inside(seqs: object, error: object) -> None:
        try:
            journal.confirm([NAME])
        except JournalError as raised:
            errors.append(raised)
        finally:
            done.set()

    done = threading.Event()
    journal.submit([], inside)
    assert done.wait(10)
    assert len(errors) == 1
