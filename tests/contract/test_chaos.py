"""The money chaos drill, short; and proof that its parts can fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from tests.contract.chaos.cluster import DATABASE, Cluster
from tests.contract.postgres import create_database

WRITERS = 4


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        made.start()
        create_database(made.primary, DATABASE)
        with psycopg.connect(made.dsn("relay_owner"), autocommit=True) as connection:
            connection.execute("create table written (writer int, number int)")
        yield made
    finally:
        made.close()


class Writer(threading.Thread):
    """Inserts numbers and remembers which the database acknowledged."""

    def __init__(self, name: int, dsn: str) -> None:
        super().__init__(daemon=True)
        self._label, self._dsn = name, dsn
        self.acknowledged: set[tuple[int, int]] = set()
        self.enough = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.enough.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True) as connection:
                    while not self.enough.is_set():
                        number += 1
                        connection.execute("insert into written values (%s, %s)", (self._label, number))
                        self.acknowledged.add((self._label, number))
            except psycopg.OperationalError:
                self.enough.wait(0.05)


def test_failover_loses_no_acknowledged_write(cluster: Cluster) -> None:
    cluster.attach_standby()
    writers = [Writer(number, cluster.dsn("relay_app")) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for _ in range(2):
        writers[0].enough.wait(0.5)
        cluster.fail_over()
        cluster.attach_standby()
    for writer in writers:
        writer.enough.set()
        writer.join()
    with psycopg.connect(cluster.dsn("relay_app")) as connection:
        found = set(connection.execute("select writer, number from written").fetchall())
    for writer in writers:
        assert writer.acknowledged
        assert writer.acknowledged <= found


def test_failover_without_a_synchronous_standby_is_refused(cluster: Cluster) -> None:
    with pytest.raises(RuntimeError, match="standby is not synchronous"):
        cluster.fail_over()
