"""The tables of the server, beside those of DBOS in the same database, and how that database is opened.

One database means one transaction for a video and its place in the queue. SQLite serves one machine, PostgreSQL many.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from pusa.errors import InputError

VERSION = 1
"""of the tables; a program refuses a database of another version"""
_TABLES = sa.MetaData()
_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")

VIDEOS = sa.Table(
    "pusa_videos",
    _TABLES,
    sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),  # the order of arrival, whatever the clock says
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("owner", sa.Text, nullable=False),  # the name of the API key
    sa.Column("status", sa.Text, nullable=False),  # queued, in_progress, completed or failed
    sa.Column("deleted", sa.Boolean, nullable=False, default=False),  # clients no longer see it; a worker stops it
    sa.Column("request", sa.JSON, nullable=False),  # `Request.to_dict`, its sources by name
    sa.Column("shown", sa.JSON, nullable=False),  # what the API says of it and nothing changes
    sa.Column("sources", sa.JSON, nullable=False),  # {name: what it is}
    sa.Column("lora", sa.JSON, nullable=False),  # [[name, scale]]
    sa.Column("progress", sa.Integer, nullable=False, default=0),  # percent
    sa.Column("step", sa.Integer, nullable=False, default=0),
    sa.Column("eta", sa.Float),  # seconds until it is ready
    sa.Column("worker", sa.Text),  # the process that makes it, or made it last
    sa.Column("attempts", sa.Integer, nullable=False, default=0),  # how often a worker began it
    sa.Column("deaths", sa.Integer, nullable=False, default=0),  # how often a worker died alone while it made it
    sa.Column("falls", sa.Integer, nullable=False, default=0),  # how often a worker died with its server meanwhile
    sa.Column("error", sa.JSON),  # {"code", "message"}
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("completed_at", sa.Float),
    sa.Column("expires_at", sa.Float),
    sa.Column("read_at", sa.Float),  # when a file of it was last sent
    sa.Column("result", sa.Text),  # the folder of the attempt that completed it
    sa.Column("bytes", sa.BigInteger, nullable=False, default=0),  # of its files
    sa.Column("idempotency_key", sa.Text),
    sa.Column("body_hash", sa.Text),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index("pusa_videos_by_owner", "owner", "deleted", "number"),
    sa.Index("pusa_videos_by_status", "status", "deleted", "number"),
    sqlite_autoincrement=True,  # the number of a deleted video is not given again
)
PREVIEWS = sa.Table(
    "pusa_previews",
    _TABLES,
    sa.Column("video", sa.Text, primary_key=True),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("image", sa.LargeBinary, nullable=False),  # an animated WebP
)
PROCESSES = sa.Table(
    "pusa_processes",
    _TABLES,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("parent", sa.Text),  # of a worker: its server
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("lock", sa.Text, nullable=False),  # a file that the process holds locked while it lives
    sa.Column("beat", sa.Integer, nullable=False, default=0),  # grows while the process lives
    sa.Column("ended", sa.Text),  # "stopped", "alone" or "with its server"
)
ABOUT = sa.Table(
    "pusa_about",
    _TABLES,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
UNREACHABLE = (sa.exc.OperationalError, sa.exc.InterfaceError)
"""the errors of a database that does not answer"""


def reason(error: Exception) -> str:
    """Why a database does not answer, in a line and without the address, which may hold a password."""
    text = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    return text.rstrip(".")[:200]


def open_database(url: str) -> sa.Engine:
    """The engine of a database. Raises InputError for an address that is neither SQLite nor PostgreSQL."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise InputError("--store is not an address: give postgresql://USER:PASSWORD@HOST/DATABASE.") from None
    kind = parsed.get_backend_name()
    if kind == "postgresql":
        wanted = parsed.set(drivername="postgresql+psycopg")
        return sa.create_engine(
            wanted,
            pool_size=10,
            max_overflow=10,
            pool_pre_ping=True,
            pool_timeout=30,
            connect_args={"connect_timeout": 5},
        )
    if kind != "sqlite":
        raise InputError(f"--store names a database of {kind}: give postgresql://USER:PASSWORD@HOST/DATABASE.")
    engine = sa.create_engine(parsed, pool_size=10, max_overflow=10, pool_timeout=30)
    sa.event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: Any) -> None:
    connection.isolation_level = "IMMEDIATE"  # a writer waits for its turn at its start and never in the middle
    for pragma in (
        "busy_timeout = 30000",
        "foreign_keys = ON",
        "journal_mode = WAL",  # readers do not wait for writers
        "synchronous = FULL",  # a committed video survives a loss of power
    ):
        connection.execute(f"PRAGMA {pragma}")


def create(engine: sa.Engine, files: Path) -> None:
    """Make the tables that are missing, and bind the database to the folder of its files.

    Raises InputError if the tables are of another version, or if the folder belongs to another database.
    """
    import secrets

    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":  # two servers that start together
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7190316)"))
        _TABLES.create_all(connection)
        about = dict(connection.execute(sa.select(ABOUT.c.name, ABOUT.c.value)).all())
        if not about:
            about = {"version": str(VERSION), "files": secrets.token_hex(8)}
            connection.execute(sa.insert(ABOUT), [{"name": name, "value": value} for name, value in about.items()])
        if about["version"] != str(VERSION):
            raise InputError(
                f"The database has tables of version {about['version']} and this program uses {VERSION}: use the "
                "version of pusa that made it, or another database."
            )
        mark = files / "belongs-to"
        if mark.exists() and mark.read_text().strip() != about["files"]:
            raise InputError(
                f"{files} has the files of another database than --store names: give the folder that belongs to it, "
                "or an empty one."
            )
        mark.write_text(about["files"] + "\n")
