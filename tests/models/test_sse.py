"""The parser of server-sent events."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from aworld.models.http import EventParser

LINES = st.one_of(
    st.sampled_from([b"", b"", b": comment", b"event: message", b"id: 1", b"data", b"data:", b"retry: 5", b"other: x"]),
    st.text(alphabet=st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), max_size=8).map(
        lambda text: b"data: " + text.encode()
    ),
)


def parse(*chunks: bytes) -> list[bytes]:
    parser = EventParser()
    events: list[bytes] = []
    for chunk in chunks:
        events += parser.feed(chunk)
    return events + parser.finish()


def expected(lines: list[bytes]) -> list[bytes]:
    """The standard, word by word."""
    events: list[bytes] = []
    data: list[bytes] = []
    for line in [*lines, b""]:
        name, _, value = line.partition(b":")
        if not line:
            if any(data) or len(data) > 1:
                events.append(b"\n".join(data))
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))
    return events


ENDS = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b"\r"])


@given(st.lists(st.tuples(LINES, ENDS), max_size=12), st.data())
def test_cut_anywhere_the_events_are_the_same(lines: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    stream = b"".join(line + end for line, end in lines)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(*chunks) == expected(re.split(rb"\r\n|\n|\r", stream))


def test_line_ends_may_be_mixed() -> None:
    assert parse(b"data: a\rdata: b\n\n") == [b"a\nb"]


def test_a_character_may_be_cut() -> None:
    whole = "data: déjà vu 🙂\n\n".encode()
    assert parse(*(whole[i : i + 1] for i in range(len(whole)))) == ["déjà vu 🙂".encode()]


def test_several_events_in_one_chunk() -> None:
    assert parse(b"data: 1\n\ndata: 2\n\n: ping\n\ndata: 3\ndata: 4\n\n") == [b"1", b"2", b"3\n4"]


def test_the_last_blank_line_may_be_missing() -> None:
    assert parse(b"data: 1\n\ndata: [DONE]") == [b"1", b"[DONE]"]


def test_an_event_comes_out_as_soon_as_it_is_whole() -> None:
    parser = EventParser()
    assert parser.feed(b"data: 1\n") == []
    assert parser.feed(b"\n") == [b"1"]
    assert parser.feed(b"data: 2\r\n\r\n") == [b"2"]
    assert parser.feed(b"data: 3\r\n\r") == []
    assert parser.feed(b"\ndata: 4\n\n") == [b"3", b"4"]
