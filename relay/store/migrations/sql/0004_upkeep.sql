-- Monthly partitions and retention of usage, roll-ups, old holds, and who runs which job when.

create table usage_hourly (
    hour        timestamptz not null,
    account_id  bigint not null,
    model       text not null,
    channel_id  bigint not null,
    calls       bigint not null,
    failed      bigint not null,
    uncosted    bigint not null,
    charge      bigint not null,
    cost        bigint not null,
    input_units bigint not null,
    output_units bigint not null,
    primary key (hour, account_id, model, channel_id)
);
comment on table usage_hourly is
    'sales (charge) and cost in n$ by hour of settlement, UTC; channel 0: none; uncosted: charged calls without cost';
create table usage_daily (like usage_hourly including all);
alter table usage_daily rename column hour to day;
comment on table usage_daily is 'the same by day, UTC';

create table jobs (
    name            text primary key,
    next_run_at     timestamptz not null default now(),
    last_success_at timestamptz,
    last_failure_at timestamptz,
    result          jsonb
);

create function usage_partition_name(month timestamptz) returns text
language sql stable set timezone = 'UTC' as $$
    select 'usage_' || to_char(month, 'YYYY_MM')
$$;

-- Computes whole hours anew, and the days that they belong to: late or repeated, the result is the same.
create function usage_roll_up(p_from timestamptz, p_to timestamptz) returns bigint
language plpgsql security definer set search_path = public, pg_temp set timezone = 'UTC' as $$
declare
    first timestamptz := date_trunc('hour', p_from);
    last  timestamptz := date_trunc('hour', p_to);
    lines bigint;
begin
    perform pg_advisory_xact_lock(hashtext('usage roll-up'));
    delete from usage_hourly where hour >= first and hour < last;
    insert into usage_hourly
    select date_trunc('hour', settled_at), account_id, model, coalesce(channel_id, 0), count(*),
           count(*) filter (where outcome <> 'ok'), count(*) filter (where charge > 0 and cost is null),
           sum(charge), coalesce(sum(cost), 0),
           coalesce(sum((select sum(value::bigint) from jsonb_each_text(meters)
                          where key like 'in\_%' or key like 'cache\_%')), 0),
           coalesce(sum((select sum(value::bigint) from jsonb_each_text(meters) where key like 'out\_%')), 0)
      from usage
     where settled_at >= first and settled_at < last
     group by 1, 2, 3, 4;
    get diagnostics lines = row_count;
    delete from usage_daily where day >= date_trunc('day', first) and day < last;
    insert into usage_daily
    select date_trunc('day', hour), account_id, model, channel_id, sum(calls), sum(failed), sum(uncosted),
           sum(charge), sum(cost), sum(input_units), sum(output_units)
      from usage_hourly
     where hour >= date_trunc('day', first) and hour < date_trunc('day', last) + interval '1 day'
     group by 1, 2, 3, 4
    on conflict (day, account_id, model, channel_id) do nothing;
    return lines;
end $$;

-- Forgets settled holds: their charge lives on in entries and usage. 35 days is the least.
create function holds_purge(keep_days integer, most integer) returns bigint
language plpgsql security definer set search_path = public, pg_temp as $$
declare
    gone bigint;
begin
    if keep_days < 35 then
        raise exception 'keep_days is %: settled holds are kept for 35 days at least', keep_days
            using errcode = 'invalid_parameter_value';
    end if;
    delete from holds where request_id in (
        select request_id from holds
         where state <> 'held' and created_at < now() - make_interval(days => keep_days) limit most);
    get diagnostics gone = row_count;
    return gone;
end $$;

-- Accounts whose grants lapse or whose periods begin, also while nobody calls.
create function ledger_roll_due(most integer) returns bigint
language plpgsql security definer set search_path = public, pg_temp as $$
declare
    account bigint;
    rolled  bigint := 0;
begin
    for account in
        select distinct account_id from balances where next_event_at <= now() order by account_id limit most
    loop
        perform ledger_roll(account);
        rolled := rolled + 1;
    end loop;
    return rolled;
end $$;
create index balances_next_event on balances (next_event_at) where next_event_at is not null;

revoke execute on function usage_roll_up, holds_purge, ledger_roll_due from public;
grant execute on function usage_roll_up, holds_purge, ledger_roll_due to relay_app;
grant select on usage_hourly, usage_daily, jobs to relay_app;
revoke insert, update, delete on usage_hourly, usage_daily from relay_app;
grant insert, update on jobs to relay_app;
revoke delete on jobs from relay_app;
