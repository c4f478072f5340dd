-- Several API keys of a channel, and how much of it is used. A channel's first key stays where it was, so
-- that the previous version of the relay serves by it.
create table channel_keys (
    id             bigint generated always as identity primary key,
    channel_id     bigint not null references channels on delete cascade,
    name           text not null check (length(name) between 1 and 64),
    api_key_sealed text not null,
    created_at     timestamptz not null default now(),
    unique (channel_id, name)
);
comment on table channel_keys is 'the keys of a channel beside its first one, which is a column of channels';

create function announce_channel_key() returns trigger language plpgsql security definer
set search_path = public, pg_temp as $$
declare
    changed bigint := case when tg_op = 'DELETE' then old.channel_id else new.channel_id end;
begin
    update revisions set revision = revision + 1, changed_at = now() where topic = 'channels';
    perform pg_notify('relay_changes', 'channels:' || changed);
    return null;
end $$;
revoke execute on function announce_channel_key from public;
create trigger channel_keys_announce after insert or update or delete on channel_keys
    for each row execute function announce_channel_key();

alter table channels
    add column key_name text not null default 'first',
    add column rpm bigint,
    add column concurrency bigint;
comment on column channels.key_name is 'the name of the key in api_key_sealed';
comment on column channels.rpm is 'requests a minute that the relays send it at most; none: no limit';
comment on column channels.concurrency is 'requests at a time that the relays send it at most; none: no limit';

create table channel_budgets (
    channel_id  bigint not null references channels on delete cascade,
    period      text not null check (period in ('day', 'month')),
    maximum     bigint not null check (maximum > 0),
    spent       bigint not null default 0,
    period_ends timestamptz not null,
    primary key (channel_id, period)
) with (fillfactor = 50);
comment on table channel_budgets is 'nano-dollars that a channel may cost in a period (UTC), by cost prices';
comment on column channel_budgets.spent is 'by ledger_settle, since the budget was made; void after period_ends';

grant select, insert, update, delete on channel_keys, channel_budgets to relay_app;
