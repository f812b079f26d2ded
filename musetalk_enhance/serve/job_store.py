"""The list of video jobs in SQLite: it survives a kill, and several servers may share it."""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUEUED, RUNNING, FINISHED, FAILED, CANCELLED = "queued", "running", "finished", "failed", "canceled"
LEASE_S = 5.0
"""Seconds without a sign of life after which another server takes a job over."""
_TABLE = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, name TEXT NOT NULL, options TEXT NOT NULL,
    created REAL NOT NULL, changed REAL NOT NULL, beat REAL NOT NULL DEFAULT 0,
    frames_processed INTEGER NOT NULL DEFAULT 0, frames_total INTEGER,
    cancel INTEGER NOT NULL DEFAULT 0, error TEXT, result TEXT)
"""
_COLUMNS = (
    *("id", "state", "name", "options", "created"),
    *("frames_processed", "frames_total", "cancel", "error", "result"),
)


@dataclass(frozen=True)
class VideoJob:
    """A job as it is stored.

    Attributes:
        id: unguessable, and the name of its folder.
        state: one of the states of this module.
        name: of the uploaded file, for people.
        options: as the request gave them.
        created: seconds since the epoch.
        frames_processed: so far.
        frames_total: None until the video is read.
        cancel: whether it shall stop.
        error: why it failed.
        result: figures on the restored video.
    """

    id: str
    state: str
    name: str
    options: dict[str, Any]
    created: float
    frames_processed: int
    frames_total: int | None
    cancel: bool
    error: str | None
    result: dict[str, Any] | None

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in (FINISHED, FAILED, CANCELLED)


class JobStore:
    """The jobs of a folder.

    Args:
        path: the database file, created if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._connection() as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(_TABLE)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=20)) as connection, connection:
            yield connection

    def add(self, name: str, options: dict[str, Any], job_id: str) -> None:
        """Queue a job whose file is in place."""
        moment = time.time()
        with self._connection() as connection:
            connection.execute(
                "INSERT INTO jobs (id, state, name, options, created, changed) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (job_id, QUEUED, name, json.dumps(options), moment, moment),
            )

    def get(self, job_id: str) -> VideoJob | None:
        """A job; None if there is none."""
        with self._connection() as connection:
            query = f"SELECT {', '.join(_COLUMNS)} FROM jobs WHERE id = ?"
            row = connection.execute(query, (job_id,)).fetchone()
        if row is None:
            return None
        values = dict(zip(_COLUMNS, row, strict=True))
        values["options"] = json.loads(values["options"])
        values["result"] = values["result"] and json.loads(values["result"])
        return VideoJob(**{**values, "cancel": bool(values["cancel"])})

    def count_open(self) -> int:
        """Number of jobs that wait or run."""
        with self._connection() as connection:
            query = "SELECT COUNT(*) FROM jobs WHERE state IN (?, ?)"
            return int(connection.execute(query, (QUEUED, RUNNING)).fetchone()[0])

    def claim(self) -> VideoJob | None:
        """Take the oldest job that waits, or whose server has given no sign of life."""
        moment = time.time()
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            row = connection.execute(
                "SELECT id FROM jobs WHERE state = ? OR (state = ? AND beat < ?) "
                "ORDER BY created LIMIT 1",
                (QUEUED, RUNNING, moment - LEASE_S),
            ).fetchone()
            if row is None:
                return None
            connection.execute(
                "UPDATE jobs SET state = ?, beat = ?, changed = ? WHERE id = ?",
                (RUNNING, moment, moment, row[0]),
            )
        return self.get(row[0])

    def beat(self, job_id: str, frames_processed: int, frames_total: int | None) -> bool:
        """A sign of life with the progress; whether the job shall go on."""
        with self._connection() as connection:
            connection.execute(
                "UPDATE jobs SET beat = ?, frames_processed = ?, frames_total = ? WHERE id = ?",
                (time.time(), frames_processed, frames_total, job_id),
            )
            row = connection.execute("SELECT cancel FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return row is not None and not row[0]

    def set_state(
        self,
        job_id: str,
        state: str,
        error: str | None = None,
        result: dict[str, Any] | None = None,
    ) -> None:
        """Record the end of a job, or put it back into the queue."""
        with self._connection() as connection:
            connection.execute(
                "UPDATE jobs SET state = ?, changed = ?, error = ?, result = ? WHERE id = ?",
                (state, time.time(), error, result and json.dumps(result), job_id),
            )

    def cancel(self, job_id: str) -> None:
        """Cancel a job that waits, and ask the server of one that runs to stop."""
        with self._connection() as connection:
            connection.execute(
                "UPDATE jobs SET cancel = 1, changed = ?, "
                "state = CASE state WHEN ? THEN ? ELSE state END WHERE id = ?",
                (time.time(), QUEUED, CANCELLED, job_id),
            )

    def delete(self, job_id: str) -> None:
        """Forget a job."""
        with self._connection() as connection:
            connection.execute("DELETE FROM jobs WHERE id = ?", (job_id,))

    def expired(self, seconds: float) -> list[str]:
        """Jobs that were over before that many seconds."""
        with self._connection() as connection:
            query = "SELECT id FROM jobs WHERE state IN (?, ?, ?) AND changed < ?"
            values = (FINISHED, FAILED, CANCELLED, time.time() - seconds)
            return [row[0] for row in connection.execute(query, values)]


def new_id() -> str:
    """An id that cannot be guessed: 32 hex digits."""
    return secrets.token_hex(16)
