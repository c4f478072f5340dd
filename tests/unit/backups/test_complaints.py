"""What users of other tools complain of, by number, and the tests here that show the opposite.

The numbers are those of the projects' issue trackers. A test of `fleet` needs the sandbox.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3] / "tests"
COMPLAINTS = {
    "CNPG#5177: recovery to a time fails": [
        "contract/test_backups.py::test_restores_stop_at_the_second_and_at_the_transaction_one_after_another",
        "contract/test_drill.py::test_a_restore_stops_at_a_second_and_nobody_else_sees_it",
        "fleet/test_3_restore.py::test_there_and_back_again",
    ],
    "CNPG#11387: nobody can pause and look before promoting": [
        "contract/test_drill.py::test_a_preview_is_paused_stepped_and_shows_both_sides",
    ],
    "CNPG#6091: a failover never starts": [
        "contract/test_failover_watch.py::test_the_key_goes_when_everybody_votes_and_nothing_has_changed",
        "fleet/test_3_failover.py::test_what_was_acknowledged_is_there",
    ],
    "CNPG#11346: a failover is silently reverted": [
        "contract/test_failover_watch.py::test_the_key_stays_when_something_has_changed",
        "fleet/test_3_failover.py::test_what_was_acknowledged_is_there",
    ],
    "CNPG#11348: a hung primary stalls its demotion": [
        "fleet/test_3_failover.py::test_what_was_acknowledged_is_there",
    ],
    "PGO#3283: a restore is cut off by a time-out": [
        "unit/backups/test_restore.py::test_a_restore_that_takes_many_hours_is_waited_for",
    ],
    "PGO#3167: a second restore is ignored": [
        "unit/backups/test_restore.py::test_a_second_restore_begins_from_the_first_step",
        "contract/test_backups.py::test_restores_stop_at_the_second_and_at_the_transaction_one_after_another",
        "fleet/test_3_restore.py::test_there_and_back_again",
    ],
    "PGO#3458: the cluster is deleted and nothing restored": [
        "unit/backups/test_restore.py::test_without_etcd_or_repository_nothing_is_stopped",
        "unit/backups/test_host_restore.py::test_data_that_was_not_set_aside_is_never_restored_over",
        "unit/backups/test_host_restore.py::test_the_data_of_a_first_restore_is_kept_by_a_second",
        "faults/test_site_loss.py::test_hosts_are_lost",
    ],
    "autobase#588: replicas are stuck after recovery to a time": [
        "unit/backups/test_host_programs.py::test_a_replica_is_built_from_a_backup_of_the_primarys_timeline",
        "fleet/test_3_restore.py::test_there_and_back_again",
    ],
    "autobase#712: replicas do not start after recovery to a time": [
        "contract/test_replica.py::test_it_catches_up_on_wal_that_the_primary_has_no_more_and_streams",
        "fleet/test_3_restore.py::test_there_and_back_again",
    ],
    "autobase#880: WAL is not found": [
        "contract/test_backups.py::test_a_deleted_wal_segment_is_found",
        "contract/test_host_programs.py::test_wal_that_somebody_deleted_is_named_and_counted",
        "fleet/test_3_backups.py::test_a_segment_that_somebody_deleted_is_found",
    ],
    "pgbackrest#1616: a test restore leaves a timeline in the archive": [
        "contract/test_drill.py::test_a_drill_and_a_restore_beside_leave_nothing_in_the_archive",
    ],
    "pgbackrest#2828: verify reads everything again each time": [
        "contract/test_backups.py::test_a_check_after_another_reads_only_what_is_new",
    ],
    "patroni#3403: the primary demotes itself when all of etcd dies": [
        "fleet/test_3_failover.py::test_what_was_acknowledged_is_there",
    ],
}


@pytest.mark.parametrize("complaint", COMPLAINTS)
def test_each_has_a_test(complaint: str) -> None:
    for place in COMPLAINTS[complaint]:
        path, _, name = place.partition("::")
        tests = [
            node for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert name in {test.name for test in tests}, place
