"""Notes: what was assumed reaches whoever collects, and the log."""

import logging

from multitalk_nodes.multitalk_core.notes import note, noting


def test_notes_are_collected_once_and_logged(caplog):
    with caplog.at_level(logging.WARNING), noting() as outer:
        note("one")
        with noting() as inner:
            note("two")
        note("one")
    assert (outer, inner) == (["one"], ["two"])
    assert [record.getMessage() for record in caplog.records] == ["MultiTalk: one", "MultiTalk: two"]


def test_without_a_collector_notes_are_in_the_log(caplog):
    note("alone")
    assert "MultiTalk: alone" in caplog.text
