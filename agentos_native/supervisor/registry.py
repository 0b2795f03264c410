"""The supervisor's memory on disk: one SQLite file in WAL mode.

Theory of operation
    Only the supervisor opens it, from its event loop's thread (a commit in WAL mode with synchronous=NORMAL is tens of
    microseconds: no fsync until a checkpoint). An application crash loses nothing; a power failure may lose the last
    commits, which recovery then finds by name on the host. One row is one agent: the columns are what must be unique,
    the rest is the record as JSON, so that a new field needs no new schema. A file that is not a sound database is
    moved aside, never repaired in place and never deleted; the agents are then adopted from the kernel's own state
    and their directories (`recovery`).
"""

from __future__ import annotations

import os
import sqlite3
import time
from typing import Final

import msgspec

from agentos_native.errors import AgentosError
from agentos_native.spec.model import AgentSpec, TenantSpec
from agentos_native.wire.api import AgentState

SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE agents (
    id TEXT PRIMARY KEY, tenant TEXT NOT NULL, name TEXT NOT NULL, slot INTEGER NOT NULL UNIQUE, record BLOB NOT NULL,
    UNIQUE (tenant, name));
CREATE TABLE tenants (name TEXT PRIMARY KEY, spec BLOB NOT NULL);
"""

_PASSING: Final = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_READONLY", "SQLITE_CANTOPEN",
                   "SQLITE_NOMEM", "SQLITE_PERM", "SQLITE_AUTH")  # fmt: skip
"""Troubles of the machine, not of the file: nothing is moved aside for them."""


class Record(msgspec.Struct, kw_only=True):
    """What is known of one agent; `registry` writes it whole.

    `wanted` is what the user asked for last (running or not), so that a restart of the supervisor knows whether to
    restart the agent. `provisional`: made by a request that shall also start it and is not answered yet; an interrupted
    one is taken back altogether. `ticket`: its place in the order of waiting starts; 0 once it runs or does not wait.
    A negative `slot` stands for one that it waits for.
    """

    id: str
    slot: int
    block: int = 0
    spec: AgentSpec
    image_digest: str
    state: AgentState = "pending"
    reason: str = ""
    exit_status: int | None = None
    oom_killed: bool = False
    oom: dict[str, int | None] = {}
    pid: int | None = None
    restarts: int = 0
    backoff_count: int = 0
    created_at: float
    started_at: float | None = None
    ended_at: float | None = None
    unenforced: list[str] = []
    warnings: list[str] = []
    wanted: bool = False
    provisional: bool = False
    ticket: int = 0
    queued_at: float | None = None


class CorruptRegistryError(Exception):
    """The file exists and is no sound registry."""


_encode = msgspec.json.Encoder().encode
_record = msgspec.json.Decoder(Record)
_tenant = msgspec.json.Decoder(TenantSpec)


def encode_record(record: Record) -> bytes:
    """The record as JSON: the registry's blob and an agent directory's ``spec.json``."""
    return _encode(record)


def decode_record(data: bytes) -> Record:
    """The inverse of `encode_record`; raises `msgspec.DecodeError` on anything else."""
    return _record.decode(data)


def refused(error: sqlite3.OperationalError) -> AgentosError:
    """What a user reads of a write that failed: a full disk, above all."""
    return AgentosError("registry", str(error), "state directory", "Is its disk full?")


class Registry:
    """An open registry; every method commits before it returns."""

    def __init__(self, path: str) -> None:
        """Open or create it.

        Raises:
            CorruptRegistryError: it exists and cannot be read as one.
            AgentosError: it was written by a newer version, or the directory is not writable.
        """
        self.path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise AgentosError("registry", str(error), path, "Is the state directory writable?") from error
        try:
            self._prepare()
            self.agents()
            self.tenants()
        except (sqlite3.DatabaseError, msgspec.MsgspecError) as error:
            self._db.close()
            if getattr(error, "sqlite_errorname", "SQLITE_CORRUPT").startswith(_PASSING):
                raise AgentosError("registry", str(error), path, "Is the disk full, or the file in use?") from error
            raise CorruptRegistryError(f"{path}: {error}") from error

    def _prepare(self) -> None:
        # Exclusive: the state directory's lock keeps others out already, so SQLite need not lock for each transaction.
        self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute("PRAGMA foreign_keys=ON")
        (check,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if check != "ok":
            raise sqlite3.DatabaseError(check)
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        elif version > SCHEMA_VERSION:
            self._db.close()
            raise AgentosError(
                "registry-version",
                f"the registry was written by a newer version (schema {version}, this one knows {SCHEMA_VERSION})",
                self.path,
                "Use the newer version, or another state directory.",
            )

    def close(self) -> None:
        """Checkpoint and close."""
        self._db.close()

    def agents(self) -> list[Record]:
        """Every agent, oldest first."""
        rows = self._db.execute("SELECT record FROM agents ORDER BY rowid").fetchall()
        return [_record.decode(row[0]) for row in rows]

    def save(self, record: Record) -> None:
        """Insert or replace one agent. Raises `sqlite3.IntegrityError` when its name or slot belongs to another."""
        spec = record.spec
        self._db.execute(
            "INSERT INTO agents (id, tenant, name, slot, record) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
            " tenant = excluded.tenant, name = excluded.name, slot = excluded.slot, record = excluded.record",
            (record.id, spec.tenant, spec.name, record.slot, _encode(record)),
        )

    def forget(self, agent_id: str) -> None:
        """Delete one agent; nothing happens when there is none."""
        self._db.execute("DELETE FROM agents WHERE id = ?", (agent_id,))

    def tenants(self) -> list[TenantSpec]:
        """Every declared tenant, by name."""
        rows = self._db.execute("SELECT spec FROM tenants ORDER BY name").fetchall()
        return [_tenant.decode(row[0]) for row in rows]

    def save_tenant(self, spec: TenantSpec) -> None:
        """Insert or replace one tenant."""
        self._db.execute(
            "INSERT INTO tenants (name, spec) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET spec = excluded.spec",
            (spec.name, _encode(spec)),
        )

    def forget_tenant(self, name: str) -> None:
        """Delete one tenant's declaration."""
        self._db.execute("DELETE FROM tenants WHERE name = ?", (name,))

    def get(self, key: str) -> str | None:
        """A value of the registry itself, for example the block that this supervisor used last."""
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, value: str) -> None:
        """The inverse of `get`."""
        self._db.execute(
            "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (key, value),
        )


def open_or_move_aside(path: str) -> tuple[Registry, str | None]:
    """The registry at `path`, and where a corrupt predecessor was moved to (None: it was sound or absent)."""
    try:
        return Registry(path), None
    except CorruptRegistryError:
        aside = f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
        for suffix in ("", "-wal", "-shm"):
            if os.path.exists(path + suffix):
                os.rename(path + suffix, aside + suffix)
        return Registry(path), aside
