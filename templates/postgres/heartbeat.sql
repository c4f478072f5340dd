-- Never waits for a standby: the heartbeat is no truth worth keeping.
SET synchronous_commit = off;
SELECT CASE WHEN NOT pg_is_in_recovery() THEN pg_logical_emit_message(true, 'heartbeat', '') END
\watch 5
