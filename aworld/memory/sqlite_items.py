"""Items in SQLite: rows, an index of their words, their vectors; in a file, or in this process alone.

One thread does all of it. Writes that wait together share a transaction, and each returns when its transaction has:
what was acknowledged is there after `kill -9`. Other processes may use the file at the same time.

The tables `words` and `around` index an item, and it with the turns beside it. Vectors lie in the rows; `Matrix` holds
them for searching, and takes in what is new before each search. Whatever changes or removes a row that a matrix may
hold raises `epoch`, upon which all is read again.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from aworld.core.event import now
from aworld.core.exceptions import AWorldError, ConfigError, StoreError
from aworld.core.memory import MESSAGES, MemoryChange, MemoryFilter, MemoryItem, Recollection
from aworld.memory.retrieval import match_of, ranked, tags_of, words_of
from aworld.trajectory.sqlite_file import begin_log, make_file

if TYPE_CHECKING:
    from aworld.memory.matrix import Matrix

T = TypeVar("T")

APPLICATION_ID = 0x41576D65
"""`AWme`: the mark of this kind of file."""
VERSION = 1
CANDIDATES = 200
"""Items that each part of a search may bring."""
_BATCH = 500  # writes in one transaction, so that the first does not wait for long

_TABLES = """
    CREATE TABLE items (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        version INTEGER NOT NULL,
        kind TEXT NOT NULL,
        scope TEXT NOT NULL,
        user_id TEXT,
        session_id TEXT,
        agent_id TEXT,
        team TEXT,
        thread TEXT,
        created_at REAL NOT NULL,
        expires_at REAL,
        importance REAL NOT NULL,
        live INTEGER NOT NULL,
        digest BLOB NOT NULL,
        data BLOB NOT NULL,
        vector BLOB
    );
    CREATE INDEX items_user ON items (user_id) WHERE user_id IS NOT NULL;
    CREATE INDEX items_thread ON items (thread, key) WHERE thread IS NOT NULL;
    CREATE INDEX items_digest ON items (digest) WHERE vector IS NOT NULL;
    CREATE INDEX items_rank ON items (key, created_at, importance, expires_at);
    CREATE INDEX items_expiry ON items (expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE changes (key INTEGER PRIMARY KEY, item TEXT NOT NULL, data BLOB NOT NULL);
    CREATE INDEX changes_item ON changes (item);
    CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
    INSERT INTO facts VALUES ('epoch', 0), ('around', 0);
    CREATE VIRTUAL TABLE words USING fts5(text, tags, tokenize = 'porter unicode61 remove_diacritics 2');
    CREATE VIRTUAL TABLE around USING fts5(text, tags, tokenize = 'porter unicode61 remove_diacritics 2')
    """
"""`thread` is the conversation of a turn: its neighbours are the keys before and after in it. `items_rank` has
what ranks a candidate: a search that read the wide rows took twice as long."""

_item = msgspec.json.Decoder(MemoryItem)
_change = msgspec.json.Decoder(MemoryChange)
_encode = msgspec.json.Encoder().encode


class SQLiteItems:
    """A store of items in one SQLite file, or with `None` in memory. Raises StoreError when it cannot be used."""

    def __init__(self, path: str | None = None, *, timeout: float = 10.0) -> None:
        self.path = path or ":memory:"
        self._timeout = timeout
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aworld-memory")
        self._db: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._waiting: list[tuple[Callable[[sqlite3.Connection], Any], Future[Any]]] = []
        self._matrix: Matrix | None = None

    async def write(self, changes: Sequence[MemoryChange], vectors: Mapping[str, bytes], model: str | None) -> bool:
        """Carry out changes, all or none; False where an item has another version than the change is based on.

        `vectors` are float32, by item id, of this model. Raises ConfigError where the store has another's.
        """

        for change in changes:
            try:
                _encode(change)
            except (TypeError, ValueError, OverflowError) as error:
                raise ConfigError(f"A memory item's data= is no JSON: {error}; give such.", setting="data") from None

        def work(db: sqlite3.Connection) -> bool:
            if vectors and model is not None:
                self._keep_model(db, model, vectors)
            db.execute("SAVEPOINT one")
            for change in changes:
                if not self._apply(db, change, vectors.get(change.item.id)):
                    db.execute("ROLLBACK TO one")
                    return False
            return True

        return await self._write(work)

    async def read(self, ids: Sequence[str]) -> list[MemoryItem]:
        """Those of these items that are there, in this order."""

        def work(db: sqlite3.Connection) -> list[MemoryItem]:
            rows = [db.execute("SELECT data FROM items WHERE id = ?", (id,)).fetchone() for id in ids]
            return [_item.decode(row[0]) for row in rows if row]

        return await self._read(work)

    async def recent(self, which: MemoryFilter, limit: int) -> list[MemoryItem]:
        """The latest items that hold, the latest first."""
        where, values = _where(which)
        sql = f"SELECT data FROM items WHERE {where} ORDER BY key DESC LIMIT ?"
        return await self._read(lambda db: [_item.decode(row[0]) for row in db.execute(sql, (*values, limit))])

    async def changes(self, id: str) -> list[MemoryChange]:
        """What was done to an item, the first first."""

        def work(db: sqlite3.Connection) -> list[MemoryChange]:
            rows = db.execute("SELECT data FROM changes WHERE item = ? ORDER BY key", (id,)).fetchall()
            if rows:
                return [_change.decode(data) for (data,) in rows]
            return [_beginning(data) for (data,) in db.execute("SELECT data FROM items WHERE id = ?", (id,))]

        return await self._read(work)

    async def search(
        self, words: str, vector: bytes, model: str | None, near: Mapping[str, float], which: MemoryFilter,
        limit: int, neighbours: int,
    ) -> list[Recollection]:  # fmt: skip
        """The best for a query, by its words (a text), its vector, and what another index has found near, by id; with
        as many turns before and after each."""

        def work(db: sqlite3.Connection) -> list[Recollection]:
            result: list[Recollection] = []
            for key, score in self._best(db, words, vector, model, near, which, limit):
                data, thread = db.execute("SELECT data, thread FROM items WHERE key = ?", (key,)).fetchone()
                beside = _beside(db, key, thread, neighbours) if neighbours else []
                turns = [db.execute("SELECT data FROM items WHERE key = ?", (k,)).fetchone()[0] for k in beside]
                around = tuple(map(_item.decode, turns))
                result.append(Recollection(item=_item.decode(data), score=score, around=around))
            return result

        def at_once(db: sqlite3.Connection) -> list[Recollection]:
            self._index_new(db)
            db.execute("BEGIN")  # one state of the file, whatever others write meanwhile
            try:
                return work(db)
            finally:
                db.execute("COMMIT")

        return await self._read(at_once)

    async def vectors(self, digests: Sequence[bytes]) -> dict[bytes, bytes]:
        """Vectors that are there of contents, by SHA-256."""
        sql = "SELECT vector FROM items WHERE digest = ? AND vector IS NOT NULL LIMIT 1"

        def work(db: sqlite3.Connection) -> dict[bytes, bytes]:
            rows = {digest: db.execute(sql, (digest,)).fetchone() for digest in digests}
            return {digest: row[0] for digest, row in rows.items() if row}

        return await self._read(work)

    async def bare(self, limit: int) -> list[MemoryItem]:
        """Items that hold and have no vector."""
        sql = "SELECT data FROM items WHERE live AND vector IS NULL LIMIT ?"
        return await self._read(lambda db: [_item.decode(row[0]) for row in db.execute(sql, (limit,))])

    async def strip(self) -> None:
        """Take all vectors out, and forget which model made them."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE items SET vector = NULL")
            db.execute("DELETE FROM facts WHERE name IN ('model', 'bytes')")
            _raise_epoch(db)

        await self._write(work)

    async def fill(self, vectors: Mapping[str, bytes], model: str) -> None:
        """Put in vectors of items that have none."""

        def work(db: sqlite3.Connection) -> None:
            self._keep_model(db, model, vectors)
            sql = "UPDATE items SET vector = ? WHERE id = ? AND vector IS NULL"
            db.executemany(sql, [(vector, id) for id, vector in vectors.items()])
            _raise_epoch(db)

        await self._write(work)

    async def purge(
        self, ids: Sequence[str] = (), *, user: str | None = None, before: float | None = None
    ) -> list[str]:
        """Delete items and all that was derived from them, so that no file holds a byte of it: these, those of a user,
        or those that expired before. Returns their ids."""

        def work(db: sqlite3.Connection) -> list[str]:
            rows: list[tuple[int, str, str | None]] = []
            for condition, value in (("user_id = ?", user), ("expires_at <= ?", before), *(("id = ?", i) for i in ids)):
                if value is not None:
                    rows += db.execute(f"SELECT key, id, thread FROM items WHERE {condition}", (value,)).fetchall()
            beside = {key for row in rows for key in _beside(db, row[0], row[2], 1)} - {row[0] for row in rows}
            for key, id, _ in rows:
                db.execute("DELETE FROM items WHERE key = ?", (key,))
                db.execute("DELETE FROM changes WHERE item = ?", (id,))
                _drop_words(db, key)
            for key in beside:
                _index_around(db, key)
            if rows:
                for table in ("words", "around"):  # a deleted word stands in the index until its pieces are merged
                    db.execute(f"INSERT INTO {table} ({table}) VALUES ('rebuild')")
                _raise_epoch(db)
            return [id for _, id, _ in rows]

        gone = await self._write(work)
        if gone or user is not None:
            await self._read(self._empty_log)
        return gone

    async def close(self) -> None:
        """Let go of the file."""

        def work() -> None:
            if self._db is not None:
                self._db.close()
                self._db = None
            self._matrix = None

        await asyncio.wrap_future(self._thread.submit(work))

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something in the thread, after all writes before it."""

        def safely() -> T:
            try:
                return work(self._open())
            except (sqlite3.Error, OSError, msgspec.DecodeError) as error:
                raise self._explained(error) from error

        return await asyncio.wrap_future(self._thread.submit(safely))

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do something in a transaction, with the writes that wait by then."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting.append((work, cast("Future[Any]", future)))
            first = len(self._waiting) == 1
        if first:
            self._thread.submit(self._commit)
        return await asyncio.wrap_future(future)

    def _commit(self) -> None:
        with self._lock:
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            if self._waiting:
                self._thread.submit(self._commit)
        results: list[tuple[Callable[[Any], None], Any]] = []
        batch = [(work, future) for work, future in batch if future.set_running_or_notify_cancel()]
        try:
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
            for work, future in batch:
                db.execute("SAVEPOINT work")
                try:
                    results.append((future.set_result, work(db)))
                except AWorldError as error:  # that one is refused, the others are not
                    db.execute("ROLLBACK TO work")
                    results.append((future.set_exception, error))
                db.execute("RELEASE work")
            db.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - whoever waits is told
            if self._db is not None and self._db.in_transaction:
                self._db.execute("ROLLBACK")
            self._matrix = None
            results = [(future.set_exception, self._explained(error)) for _, future in batch]
        for settle, result in results:
            settle(result)

    def _open(self) -> sqlite3.Connection:
        if self._db is not None:
            return self._db
        if self.path != ":memory:":
            make_file(Path(self.path))
        db = sqlite3.connect(self.path, timeout=self._timeout, isolation_level=None, check_same_thread=False)
        try:
            begin_log(db, self._timeout)
            for pragma in ("trusted_schema = OFF", "synchronous = normal", "secure_delete = ON", "cache_size = -32768"):
                db.execute(f"PRAGMA {pragma}")
            db.execute("PRAGMA temp_store = memory")  # nothing of it in a file that nobody erases
            db.execute("BEGIN IMMEDIATE")
            mark, version, tables = db.execute(
                "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_master) "
                "FROM pragma_application_id, pragma_user_version"
            ).fetchone()
            if tables and (mark, version) != (APPLICATION_ID, VERSION):
                what = f"of version {version}" if mark == APPLICATION_ID else "of another program"
                raise StoreError(f"memory={self.path} | a file {what}; give the memory a file of its own (path=)")
            if not tables:
                for statement in _TABLES.split(";"):
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        self._db = db
        return db

    def _empty_log(self, db: sqlite3.Connection) -> None:
        """Bring the log beside the file into it, and empty it: it may hold what was deleted."""
        busy = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        if busy:
            raise StoreError(
                f"memory={self.path} | erased, but another process reads the file, and the log beside it (-wal) keeps "
                "what was erased: let it end, and erase again"
            )

    def _explained(self, error: BaseException) -> BaseException:
        """A failure with what to do about it."""
        if isinstance(error, AWorldError) or not isinstance(error, sqlite3.Error | OSError | msgspec.DecodeError):
            return error
        name = "_".join(getattr(error, "sqlite_errorname", "").split("_")[:2])
        remedy = _REMEDIES.get(name, "look at the file, its folder and the disk")
        return StoreError(f"memory={self.path} | {error}: {remedy}")

    def _check_model(self, db: sqlite3.Connection, model: str, size: int) -> bool:
        """Refuse vectors of another model than that of those that are there; whether there are any."""
        facts = dict(db.execute("SELECT name, value FROM facts WHERE name IN ('model', 'bytes')").fetchall())
        if facts and (facts["model"], facts["bytes"]) != (model, size):
            raise ConfigError(
                f"embedding_config: {self.path} has vectors of {facts['model']!r} ({facts['bytes'] // 4} dimensions), "
                f"and these are of {model!r} ({size // 4}): configure that one, or call `await memory.embed_again()`",
                setting="embedding_config",
            )
        return bool(facts)

    def _keep_model(self, db: sqlite3.Connection, model: str, vectors: Mapping[str, bytes]) -> None:
        size = len(next(iter(vectors.values())))
        if not self._check_model(db, model, size):
            db.execute("INSERT INTO facts VALUES ('model', ?), ('bytes', ?)", (model, size))

    def _apply(self, db: sqlite3.Connection, change: MemoryChange, vector: bytes | None) -> bool:
        """Write one change. False when the item is not at the version before it."""
        item = change.item
        row = db.execute("SELECT key, version, thread, data FROM items WHERE id = ?", (item.id,)).fetchone()
        if (row[1] if row else 0) != item.version - 1:
            return False
        live, about, thread = item.retired_at is None, item.metadata, _thread_of(item)
        digest = hashlib.sha256(item.content.encode()).digest()
        columns: dict[str, Any] = {
            "id": item.id, "version": item.version, "kind": item.kind, "scope": item.scope, "user_id": about.user_id,
            "session_id": about.session_id, "agent_id": about.agent_id, "team": about.team, "thread": thread,
            "created_at": item.created_at, "expires_at": item.expires_at, "importance": item.importance, "live": live,
            "digest": digest, "data": _encode(item), "vector": vector,
        }  # fmt: skip
        if row is None:
            sql = f"INSERT INTO items ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
            key = db.execute(sql, tuple(columns.values())).lastrowid
            assert key is not None  # it has been inserted
        else:
            key = row[0]
            if item.version == 2:  # how it began is written down when it changes: most items never do
                _note(db, _beginning(row[3]))
            _note(db, change)
            sql = f"UPDATE items SET {', '.join(f'{name} = ?' for name in columns)} WHERE key = ?"
            db.execute(sql, (*columns.values(), key))
            _drop_words(db, key)
            _raise_epoch(db)
        if live:
            db.execute(
                "INSERT INTO words (rowid, text, tags) VALUES (?, ?, ?)", (key, words_of(item.content), tags_of(item))
            )
        if row is not None:  # of a new one that waits for the next search
            for other in {key, *_beside(db, key, thread, 1), *_beside(db, key, row[2], 1)}:
                _index_around(db, other)
        return True

    def _best(
        self, db: sqlite3.Connection, words: str, vector: bytes, model: str | None, near: Mapping[str, float],
        which: MemoryFilter, limit: int,
    ) -> list[tuple[int, float]]:  # fmt: skip
        parts: dict[str, dict[int, float]] = {}
        match, most = match_of(words, which), max(limit, CANDIDATES)
        for table in ("words", "around") if match else ():
            sql = (
                f"SELECT rowid, -bm25({table}, 1.0, 0.0) AS score FROM {table} WHERE {table} MATCH ? "
                "ORDER BY score DESC, rowid DESC LIMIT ?"
            )
            parts[table] = dict(db.execute(sql, (match, most)).fetchall())
        if model is not None:
            self._check_model(db, model, len(vector))
            if near:
                ids = [(id, db.execute("SELECT key FROM items WHERE id = ? AND live", (id,)).fetchone()) for id in near]
                parts["vector"] = {row[0]: near[id] for id, row in ids if row}
            else:
                others = [key for part in parts.values() for key in part]
                matrix = self._synchronised(db)
                parts["vector"], parts["vector_around"] = matrix.search(vector, which, most, others, now())
        keys = ", ".join(map(str, {key for part in parts.values() for key in part}))
        rows = db.execute(
            "SELECT key, created_at, importance FROM items INDEXED BY items_rank "
            f"WHERE key IN ({keys}) AND (expires_at IS NULL OR expires_at > ?)",
            (now(),),
        )
        return ranked(parts, {key: (at, importance) for key, at, importance in rows}, now(), limit)

    def _index_new(self, db: sqlite3.Connection) -> None:
        """Index what was added since the last search with the turns beside it: all at once costs half."""
        mark = "SELECT value FROM facts WHERE name = 'around'"
        while db.execute(f"SELECT EXISTS (SELECT 1 FROM items WHERE key > ({mark}))").fetchone()[0]:
            db.execute("BEGIN IMMEDIATE")
            try:
                rows = db.execute(
                    f"SELECT key, thread FROM items WHERE key > ({mark}) ORDER BY key LIMIT ?", (_BATCH,)
                ).fetchall()  # none where another process was faster
                for key in {key for key, _ in rows}.union(*(_beside(db, key, thread, 1) for key, thread in rows)):
                    _index_around(db, key)
                if rows:
                    db.execute("UPDATE facts SET value = ? WHERE name = 'around'", (rows[-1][0],))
                db.execute("COMMIT")
            except BaseException:
                db.execute("ROLLBACK")
                raise

    def _synchronised(self, db: sqlite3.Connection) -> Matrix:
        """The matrix, with what this and other processes have written."""
        from aworld.memory.matrix import COLUMNS, Matrix  # NumPy is not imported where there are no vectors

        epoch = db.execute("SELECT value FROM facts WHERE name = 'epoch'").fetchone()[0]
        if self._matrix is None or self._matrix.epoch != epoch:
            self._matrix = Matrix(epoch)
        rows = db.execute(
            f"SELECT {COLUMNS} FROM items WHERE key > ? AND live AND vector IS NOT NULL ORDER BY key",
            (self._matrix.last,),
        )
        while batch := rows.fetchmany(10_000):
            self._matrix.extend(batch)
        return self._matrix


_REMEDIES = {
    "SQLITE_BUSY": "another process holds the file locked; end it, or raise timeout= (seconds)",
    "SQLITE_CANTOPEN": "the file cannot be opened; look at path= and the permissions of its folder",
    "SQLITE_CORRUPT": "the file is damaged; save what is left with `sqlite3 FILE .recover`, and give another path=",
    "SQLITE_FULL": "the disk is full; make room and go on, what was acknowledged is safe",
    "SQLITE_NOTADB": "this is no file of a memory; give another path=",
    "SQLITE_READONLY": "the file or its folder cannot be written; change its permissions or give another path=",
}


def _beginning(data: bytes) -> MemoryChange:
    item = _item.decode(data)
    return MemoryChange(action="added", item=item, at=item.created_at)


def _note(db: sqlite3.Connection, change: MemoryChange) -> None:
    db.execute("INSERT INTO changes (item, data) VALUES (?, ?)", (change.item.id, _encode(change)))


def _thread_of(item: MemoryItem) -> str | None:
    """The conversation of a turn; no turn of one user is a neighbour of another's."""
    about = item.metadata
    place = about.session_id or about.task_id
    if place is None or item.kind not in MESSAGES or item.scope == "global":  # whoever finds that is not shown the rest
        return None
    return f"{about.user_id or ''}\n{place}"


def _beside(db: sqlite3.Connection, key: int, thread: str | None, count: int) -> list[int]:
    """As many turns before and after, in order."""
    if thread is None:
        return []
    before, after = (
        db.execute(
            f"SELECT key FROM items WHERE thread = ? AND live AND key {sign} ? ORDER BY key {order} LIMIT ?",
            (thread, key, count),
        ).fetchall()
        for sign, order in (("<", "DESC"), (">", "ASC"))
    )
    return [row[0] for row in (*reversed(before), *after)]


def _index_around(db: sqlite3.Connection, key: int) -> None:
    """Index a turn anew with its neighbours."""
    row = db.execute("SELECT data, thread FROM items WHERE key = ? AND live", (key,)).fetchone()
    if row is None:
        return
    item = _item.decode(row[0])
    keys = sorted([key, *_beside(db, key, row[1], 1)])
    sql = f"SELECT text FROM words WHERE rowid IN ({', '.join(map(str, keys))}) ORDER BY rowid"
    text = "\n".join(text for (text,) in db.execute(sql))
    db.execute("INSERT OR REPLACE INTO around (rowid, text, tags) VALUES (?, ?, ?)", (key, text, tags_of(item)))


def _drop_words(db: sqlite3.Connection, key: int) -> None:
    db.execute("DELETE FROM words WHERE rowid = ?", (key,))
    db.execute("DELETE FROM around WHERE rowid = ?", (key,))


def _raise_epoch(db: sqlite3.Connection) -> None:
    db.execute("UPDATE facts SET value = value + 1 WHERE name = 'epoch'")


def _where(which: MemoryFilter) -> tuple[str, list[Any]]:
    """The rows that a filter means, of those that hold."""
    conditions, values = ["live", "(expires_at IS NULL OR expires_at > ?)"], [cast("Any", now())]
    if owners := which.owners:
        same = " AND ".join(f"items.{name} = ?" for name in owners)
        conditions.append(f"(scope = 'global' OR ({same}))")
        values += owners.values()
    for column, names in (("kind", which.kinds), ("scope", which.scopes)):
        if names:
            conditions.append(f"{column} IN ({', '.join('?' * len(names))})")
            values += names
    return " AND ".join(conditions), values
