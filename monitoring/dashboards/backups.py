"""Backups and drills: could we restore, how fast, and how much would be lost."""

from __future__ import annotations

from monitoring.dashboards.panels import Board, Lines, Number, Query, Section

BOARD = Board(
    uid="relay-backups",
    title="Backups and drills",
    description="Age and size of backups, the archive of WAL, the bucket, and what restore drills proved.",
    hours=24 * 7,
    sections=[
        Section(
            "Could we restore?",
            [
                Number(
                    title="Newest backup",
                    description="Age of the newest good one.",
                    unit="s",
                    alerts=["BackupTooOld"],
                    query=Query("time() - max(backup_newest_timestamp_seconds)"),
                ),
                Number(
                    title="Newest WAL",
                    description="Age of the newest in the repository: what a restore would lose.",
                    unit="s",
                    alerts=["WalNotArchived"],
                    query=Query("time() - max(backup_wal_newest_timestamp_seconds)"),
                ),
                Number(
                    title="Last proven restore",
                    description="Age of the last drill that proved a restore; without one it shows decades.",
                    unit="s",
                    pages=["DrillTooOld"],
                    query=Query("time() - max(drill_last_success_timestamp_seconds)"),
                ),
                Number(
                    title="Time to restore",
                    description="Of the last proven drill, from the order to a writable database.",
                    unit="s",
                    query=Query("max(drill_rto_seconds)"),
                ),
                Number(
                    title="Data at risk",
                    description="Of the last proven drill: age of the newest archived WAL when it began.",
                    unit="s",
                    query=Query("max(drill_rpo_seconds)"),
                ),
                Number(
                    title="Good backups",
                    description="In the repository.",
                    unit="short",
                    query=Query("max(backup_count)"),
                ),
            ],
        ),
        Section(
            "Backups",
            [
                Number(
                    title="Damaged backups",
                    description="With errors, or that need such a one.",
                    unit="short",
                    alerts=["BackupDamaged"],
                    query=Query("max(backup_damaged_count)"),
                ),
                Number(
                    title="Last backup failed",
                    description="1: on some host the last try failed.",
                    unit="short",
                    alerts=["BackupFailed"],
                    query=Query("max(backup_run_failed)"),
                ),
                Number(
                    title="Repository looked at",
                    description="Since it was last measured.",
                    unit="s",
                    alerts=["BackupUnmeasured"],
                    query=Query("time() - max(backup_check_timestamp_seconds)"),
                ),
                Number(
                    title="Repository verified",
                    description="Since every file of it was last read.",
                    unit="s",
                    pages=["BackupDamaged"],
                    query=Query("time() - max(backup_verify_timestamp_seconds)"),
                ),
                Number(
                    title="Faults found",
                    description="By the last verification.",
                    unit="short",
                    alerts=["BackupDamaged"],
                    query=Query("max(backup_verify_problems)"),
                ),
                Number(
                    title="Retention refused",
                    description="1: the last one dropped nothing because something was wrong.",
                    unit="short",
                    alerts=["BackupRetentionStopped"],
                    query=Query("max(backup_retention_refused)"),
                ),
                Number(
                    title="Retention ran",
                    description="Since it last ran to its end.",
                    unit="s",
                    pages=["BackupRetentionStopped"],
                    query=Query("time() - max(backup_retention_timestamp_seconds)"),
                ),
                Number(
                    title="Tried last",
                    description="Since a host last tried to make a backup.",
                    unit="s",
                    pages=["BackupFailed"],
                    query=Query("time() - max(backup_run_timestamp_seconds)"),
                ),
            ],
        ),
        Section(
            "Size and time",
            [
                Lines(
                    title="Size",
                    description="The database, its newest backup, all backups.",
                    unit="bytes",
                    pages=["BackupGrowsFast"],
                    queries=[
                        Query("max(backup_newest_bytes)", "database"),
                        Query("max(backup_newest_repository_bytes)", "newest backup"),
                        Query("max(backup_repository_bytes)", "all backups"),
                    ],
                ),
                Lines(
                    title="Duration",
                    description="Of the newest good backup, and of the last try with its check.",
                    unit="s",
                    queries=[
                        Query("max(backup_newest_duration_seconds)", "newest"),
                        Query("max(backup_run_duration_seconds)", "last try"),
                    ],
                ),
                Lines(
                    title="WAL",
                    description="On the primary's disk; it waits for the archive or a replica.",
                    unit="bytes",
                    pages=["WalPilesUp"],
                    queries=[Query("max(backup_wal_bytes)", "WAL")],
                ),
                Lines(
                    title="The archiver",
                    description="Segments that wait; 64 are a gibibyte.",
                    unit="short",
                    pages=["WalArchiverFailing"],
                    queries=[
                        Query("max(backup_archiver_waiting_segments)", "waiting"),
                        Query("max(backup_archiver_failing)", "failing"),
                    ],
                ),
                Lines(
                    title="Faults of the archive",
                    description="Segments that are missing, and other faults.",
                    unit="short",
                    alerts=["WalMissing"],
                    queries=[
                        Query("max(backup_wal_missing_segments)", "missing"),
                        Query("max(backup_wal_problems)", "other"),
                    ],
                ),
            ],
        ),
        Section(
            "The bucket",
            [
                Number(
                    title="Faults of the bucket",
                    description="In how many ways it is not as it must be: lock, versions, rights.",
                    unit="short",
                    alerts=["BackupBucketFaulty"],
                    query=Query("max(backup_bucket_faults)"),
                ),
                Number(
                    title="Looked at",
                    description="Since the bucket was last looked at.",
                    unit="s",
                    pages=["BackupBucketFaulty"],
                    query=Query("time() - max(backup_bucket_check_timestamp_seconds)"),
                ),
                Number(
                    title="Objects",
                    description="Those that can be brought back among them.",
                    unit="short",
                    query=Query("max(backup_bucket_objects)"),
                ),
                Lines(
                    title="Bytes kept",
                    description="All, and what was overwritten or deleted and can be brought back.",
                    unit="bytes",
                    queries=[
                        Query("max(backup_bucket_bytes)", "all"),
                        Query("max(backup_bucket_older_bytes)", "older versions"),
                    ],
                ),
                Lines(
                    title="Cost a month",
                    description="At the price of the settings, and what it may be (0: no limit).",
                    unit="currencyUSD",
                    pages=["BackupCostHigh"],
                    queries=[
                        Query("max(backup_bucket_cost_usd_month)", "cost"),
                        Query("max(backup_bucket_cost_limit_usd_month)", "limit"),
                    ],
                ),
            ],
        ),
        Section(
            "Drills",
            [
                Number(
                    title="Last drill failed",
                    description="1: the last drill did not prove its restore.",
                    unit="short",
                    alerts=["DrillFailed"],
                    query=Query("max(drill_failed)"),
                ),
                Number(
                    title="Last drill",
                    description="Since one last ended, however.",
                    unit="s",
                    pages=["DrillTooOld"],
                    query=Query("time() - max(drill_last_run_timestamp_seconds)"),
                ),
                Number(
                    title="May be as old as",
                    description="The setting drill_max_age_days.",
                    unit="s",
                    pages=["DrillTooOld"],
                    query=Query("max(drill_max_age_seconds)"),
                ),
                Number(
                    title="Drills set up",
                    description="Since drills were set up on the host.",
                    unit="s",
                    query=Query("time() - max(drill_installed_timestamp_seconds)"),
                ),
                Number(
                    title="Receipts unkept",
                    description="That are on their host only, because the store did not take them.",
                    unit="short",
                    alerts=["DrillReceiptsUnkept"],
                    query=Query("max(drill_receipts_unkept)"),
                ),
                Lines(
                    title="What drills measured",
                    description="Seconds to a writable database, and age of the newest archived WAL.",
                    unit="s",
                    queries=[
                        Query("max(drill_rto_seconds)", "time to restore"),
                        Query("max(drill_rpo_seconds)", "data at risk"),
                    ],
                ),
            ],
        ),
    ],
)
