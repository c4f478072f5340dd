-- Makes the partitions of this month and the next ones. Rows that fell into the default partition meanwhile (the
-- job was late) move into theirs; calls wait for that moment only then.
create or replace function usage_ensure_partitions(ahead integer) returns text[]
language plpgsql security definer set search_path = public, pg_temp set timezone = 'UTC' as $$
declare
    months timestamptz[];
    month  timestamptz;
    late   boolean;
    made   text[] := '{}';
begin
    perform pg_advisory_xact_lock(hashtext('usage partitions'));
    select exists (select from usage_default) into late;
    select array_agg(distinct m) into months
      from (select date_trunc('month', now()) + make_interval(months => n) as m
              from generate_series(0, greatest(ahead, 1)) n
             union select date_trunc('month', settled_at) from usage_default) wanted
     where to_regclass(usage_partition_name(m)) is null;
    if months is null and not late then
        return made;
    end if;
    if late then
        lock table usage in access exclusive mode;
        alter table usage detach partition usage_default;
        alter table usage_default rename to usage_late;
        create table usage_default partition of usage default;
    end if;
    foreach month in array coalesce(months, '{}') loop
        execute format('create table %I partition of usage for values from (%L) to (%L)',
                       usage_partition_name(month), month, month + interval '1 month');
        execute format('revoke all on %I from relay_app', usage_partition_name(month));
        execute format('grant select on %I to relay_app', usage_partition_name(month));
        made := made || usage_partition_name(month);
    end loop;
    if late then
        insert into usage select * from usage_late;
        drop table usage_late;
        revoke all on usage_default from relay_app;
        grant select on usage_default to relay_app;
    end if;
    return made;
end $$;
