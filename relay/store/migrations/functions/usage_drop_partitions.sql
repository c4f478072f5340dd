-- Drops months that ended more than keep_months ago and are rolled up. Six months is the least.
create or replace function usage_drop_partitions(keep_months integer) returns text[]
language plpgsql security definer set search_path = public, pg_temp set timezone = 'UTC' as $$
declare
    oldest  timestamptz := date_trunc('month', now()) - make_interval(months => keep_months);
    rolled  timestamptz;
    part    text;
    dropped text[] := '{}';
begin
    if keep_months < 6 then
        raise exception 'keep_months is %: usage is kept for six months at least', keep_months
            using errcode = 'invalid_parameter_value';
    end if;
    select (result ->> 'until')::timestamptz into rolled from jobs where name = 'roll_up';
    if rolled is null then
        return dropped;
    end if;
    for part in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
         where i.inhparent = 'usage'::regclass and c.relname ~ '^usage_\d{4}_\d{2}$'
           and c.relname < usage_partition_name(least(oldest, rolled))
    loop
        execute format('drop table %I', part);
        dropped := dropped || part;
    end loop;
    return dropped;
end $$;
