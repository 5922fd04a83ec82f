"""Server-sent events, read as they come.

The providers need only the data of an event (its type is in the data too), so names, ids and retry hints are passed
over. Bytes may be cut anywhere, also within a line end or a UTF-8 character: nothing is decoded here, and a line is
looked at when it is whole. Source: WHATWG HTML, 9.2.6 "Interpreting an event stream".
"""

from __future__ import annotations


class EventParser:
    """An incremental parser: bytes in, the data of whole events out."""

    __slots__ = ("_after_cr", "_data", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        """The line that is not yet whole, in pieces, so that a long one is joined only once."""
        self._data: list[bytes] = []
        """Data lines of the event that is not yet whole."""
        self._after_cr = False
        """Whether the last byte was a carriage return: a line feed that follows belongs to it."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that `chunk` completes, in order."""
        if not (self._pieces or self._data or self._after_cr) and chunk[:6] == b"data: " and chunk[-2:] == b"\n\n":
            # Nearly every chunk is one or more whole events of one line each: 0.6 µs, against 0.9 line by line.
            events = chunk[6:-2].split(b"\n\ndata: ")
            # The count of line ends tells that each piece is one line; anything unusual takes the way below.
            if chunk.count(b"\n") == 2 * len(events) and b"\r" not in chunk and b"" not in events:
                return events
        if not chunk:
            return []
        if self._after_cr and chunk[0] == 10:
            chunk = chunk[1:]
            self._after_cr = False
            if not chunk:
                return []
        else:
            self._after_cr = False
        if b"\r" in chunk:
            self._after_cr = chunk[-1] == 13
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in chunk:
            self._pieces.append(chunk)
            return []
        if self._pieces:
            self._pieces.append(chunk)
            chunk = b"".join(self._pieces)
            self._pieces.clear()
        lines = chunk.split(b"\n")
        rest = lines.pop()  # what follows the last line end is not yet a whole line
        if rest:
            self._pieces.append(rest)
        return self._read(lines)

    def finish(self) -> list[bytes]:
        """The event that the end of the stream completes. The standard drops it; servers that forget the last blank
        line are more common than servers that die exactly there, and half an event is not valid JSON anyway."""
        lines = [b"".join(self._pieces), b""]
        self._pieces.clear()
        return self._read(lines)

    def _read(self, lines: list[bytes]) -> list[bytes]:
        events: list[bytes] = []
        data = self._data
        for line in lines:
            if line[:5] == b"data:":
                data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line:
                if data:
                    event = data[0] if len(data) == 1 else b"\n".join(data)
                    data.clear()
                    if event:  # one without data is not an event
                        events.append(event)
            elif line == b"data":
                data.append(b"")
        return events
