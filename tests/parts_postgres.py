"""A PostgreSQL of our own, from the binaries of this machine: made in a temporary folder, gone with the tests."""

import contextlib
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

_numbers = itertools.count()


def binaries() -> Path | None:
    """The folder with initdb and pg_ctl: on the PATH, or where Debian puts them."""
    found = shutil.which("pg_ctl")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


@contextlib.contextmanager
def postgres() -> Iterator[Path]:
    """The folder with the socket of a server that runs. Skips the test, with the reason, where none can."""
    folder = binaries()
    if folder is None:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    user: dict[str, object] = {}
    place = Path(tempfile.mkdtemp(prefix="lifelist-pg-", dir="/tmp"))  # a socket's path must be short
    if os.getuid() == 0:  # the server refuses to run as root
        nobody = pwd.getpwnam("nobody")
        os.chown(place, nobody.pw_uid, nobody.pw_gid)
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    data = place / "data"

    def run(*command: str) -> None:
        done = subprocess.run(
            [str(folder / command[0]), *command[1:]], capture_output=True, text=True, cwd=place, **user
        )  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        run(
            "initdb",
            "-D",
            str(data),
            "-A",
            "trust",
            "-U",
            "postgres",
            "--no-sync",
            "--encoding",
            "UTF8",
            "--locale",
            "C",
        )
        run("pg_ctl", "-D", str(data), "-o", f"-h '' -k {place} -c fsync=off", "-l", str(place / "log"), "-w", "start")
        try:
            yield place
        finally:
            run("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def new_database(place: Path) -> str:
    """The SQLAlchemy URL of an empty database."""
    name = f"lifelist_{next(_numbers)}"
    with psycopg.connect(f"host={place} user=postgres dbname=postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"postgresql+psycopg://postgres@/{name}?host={place}"
