-- Accounts, tokens, channels, prices and the ledger's tables.
-- Money is an integer of nano-dollars (1 USD = 1,000,000,000); typed quotas are integers of their own unit.

create extension if not exists btree_gist;

-- ------------------------------------------------------------------ change announcements
create table revisions (
    topic      text primary key,
    revision   bigint not null default 0,
    changed_at timestamptz not null default now()
);
comment on table revisions is
    'One row a topic of cached configuration; a cache compares its revision when a notification may be lost.';
insert into revisions (topic) values ('accounts'), ('tokens'), ('channels'), ('prices');

create function announce_change() returns trigger language plpgsql security definer
set search_path = public, pg_temp as $$
declare
    changed bigint := case when tg_op = 'DELETE' then old.id else new.id end;
begin
    update revisions set revision = revision + 1, changed_at = now() where topic = tg_argv[0];
    perform pg_notify('relay_changes', tg_argv[0] || ':' || changed);
    return null;
end $$;

create function forbid_change() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only: % is refused; write a correcting row instead', tg_table_name, tg_op
        using errcode = 'restrict_violation';
end $$;

-- ------------------------------------------------------------------ who
create table accounts (
    id                 bigint generated always as identity primary key,
    name               text not null unique check (length(name) between 1 and 200),
    customer_group     text not null default 'default',
    status             text not null default 'active' check (status in ('active', 'suspended', 'closed')),
    credit_limit       bigint not null default 0 check (credit_limit >= 0),
    overage_multiplier numeric not null default 1 check (overage_multiplier > 0),
    period_anchor      timestamptz not null default now(),
    created_at         timestamptz not null default now()
);
comment on column accounts.credit_limit is 'nano-dollars that may be spent below zero (postpaid)';
comment on column accounts.overage_multiplier is 'applies to the part of a charge that no plan period pays';
create trigger accounts_announce after insert or update or delete on accounts
    for each row execute function announce_change('accounts');

create table tokens (
    id          bigint generated always as identity primary key,
    account_id  bigint not null references accounts,
    name        text not null check (length(name) between 1 and 200),
    hash        bytea not null unique check (length(hash) = 32),
    prefix      text not null,
    status      text not null default 'active' check (status in ('active', 'disabled')),
    models      text[],
    addresses   cidr[],
    permissions text[],
    rpm         integer check (rpm > 0),
    tpm         bigint check (tpm > 0),
    concurrency integer check (concurrency > 0),
    expires_at  timestamptz,
    created_at  timestamptz not null default now(),
    unique (account_id, name)
);
comment on column tokens.hash is 'SHA-256 of the token; the token itself is shown once and never stored';
create trigger tokens_announce after insert or update or delete on tokens
    for each row execute function announce_change('tokens');

create table channels (
    id             bigint generated always as identity primary key,
    name           text not null unique check (length(name) between 1 and 200),
    provider       text not null,
    base_url       text not null,
    api_key_sealed text not null,
    models         text[] not null default '{}',
    model_map      jsonb not null default '{}',
    priority       integer not null default 0,
    weight         integer not null default 1 check (weight >= 0),
    status         text not null default 'enabled' check (status in ('enabled', 'disabled')),
    settings       jsonb not null default '{}',
    created_at     timestamptz not null default now()
);
create trigger channels_announce after insert or update or delete on channels
    for each row execute function announce_change('channels');

-- ------------------------------------------------------------------ prices
create table price_versions (
    id             bigint generated always as identity primary key,
    model          text not null check (length(model) between 1 and 200),
    side           text not null check (side in ('sell', 'cost')),
    provider       text not null default '',
    customer_group text not null default '',
    currency       text not null default 'USD' check (currency ~ '^[A-Z]{3}$'),
    valid_from     timestamptz not null default now(),
    valid_to       timestamptz,
    status         text not null default 'draft' check (status in ('draft', 'published')),
    free           boolean not null default false,
    quantum        bigint not null default 1 check (quantum > 0),
    minimum        bigint not null default 0 check (minimum >= 0),
    style          text not null check (style in ('price', 'ratio')),
    typed          jsonb not null,
    hash           text not null,
    source         text not null,
    created_at     timestamptz not null default now(),
    check (valid_to is null or valid_to > valid_from),
    constraint price_versions_overlap exclude using gist (
        model with =, side with =, provider with =, customer_group with =,
        tstzrange(valid_from, valid_to) with &&
    ) where (status = 'published')
);
comment on column price_versions.model is 'exact name, or a pattern with *';
comment on column price_versions.typed is 'the price as its author wrote it, in the style they used';

create table price_rows (
    id             bigint generated always as identity primary key,
    version_id     bigint not null references price_versions on delete cascade,
    meter          text not null,
    unit_price     bigint not null check (unit_price >= 0),
    fallback       text,
    service_tier   text not null default '',
    context_from   bigint not null default 0 check (context_from >= 0),
    context_to     bigint check (context_to > context_from),
    constraint price_rows_overlap exclude using gist (
        version_id with =, meter with =, service_tier with =,
        int8range(context_from, context_to) with &&
    )
);
comment on column price_rows.unit_price is 'nano-currency per 1,000,000 units of the meter';
comment on column price_rows.context_from is 'first prompt length (all input meters) that the row prices';
comment on column price_rows.context_to is 'first prompt length that it no longer prices; null: no end';

create table group_multipliers (
    id             bigint generated always as identity primary key,
    customer_group text not null,
    for_group      text not null default '',
    multiplier     numeric not null check (multiplier >= 0),
    valid_from     timestamptz not null default now(),
    valid_to       timestamptz,
    source         text not null,
    created_at     timestamptz not null default now(),
    check (valid_to is null or valid_to > valid_from),
    constraint group_multipliers_overlap exclude using gist (
        customer_group with =, for_group with =, tstzrange(valid_from, valid_to) with &&
    )
);
comment on table group_multipliers is
    'for_group empty: the group''s multiplier; else what customers of customer_group pay when using for_group';

create table fx_rates (
    id          bigint generated always as identity primary key,
    currency    text not null check (currency ~ '^[A-Z]{3}$' and currency <> 'USD'),
    numerator   bigint not null check (numerator > 0),
    denominator bigint not null check (denominator > 0),
    valid_from  timestamptz not null default now(),
    valid_to    timestamptz,
    source      text not null,
    created_at  timestamptz not null default now(),
    check (valid_to is null or valid_to > valid_from),
    constraint fx_rates_overlap exclude using gist (currency with =, tstzrange(valid_from, valid_to) with &&)
);
comment on table fx_rates is 'US dollars for one unit of the currency, as a fraction';

-- A published price is what charges were computed by: only its end may still be set, and never into the past.
create function guard_price_version() returns trigger language plpgsql as $$
begin
    if old.status = 'draft' then
        return case when tg_op = 'DELETE' then old else new end;
    end if;
    if tg_op = 'DELETE' then
        raise exception 'price version % is published and cannot be deleted', old.id
            using errcode = 'restrict_violation';
    end if;
    if to_jsonb(new) - 'valid_to' <> to_jsonb(old) - 'valid_to'
       or (new.valid_to is distinct from old.valid_to
           and (new.valid_to is null or new.valid_to < now() or new.valid_to > old.valid_to)) then
        raise exception 'price version % is published: only its end may be set, to now or later', old.id
            using errcode = 'restrict_violation';
    end if;
    return new;
end $$;
create trigger price_versions_guard before update or delete on price_versions
    for each row execute function guard_price_version();

create function guard_price_row() returns trigger language plpgsql as $$
declare
    version bigint := case when tg_op = 'INSERT' then new.version_id else old.version_id end;
begin
    if exists (select from price_versions v where v.id = version and v.status = 'published') then
        raise exception 'price version % is published: its rows cannot change', version
            using errcode = 'restrict_violation';
    end if;
    return case when tg_op = 'DELETE' then old else new end;
end $$;
create trigger price_rows_guard before insert or update or delete on price_rows
    for each row execute function guard_price_row();

create function guard_dated() returns trigger language plpgsql as $$
begin
    if tg_op = 'DELETE' or to_jsonb(new) - 'valid_to' <> to_jsonb(old) - 'valid_to'
       or new.valid_to is null or new.valid_to < now() or new.valid_to > old.valid_to then
        raise exception '% % is in force: only its end may be set, to now or later', tg_table_name, old.id
            using errcode = 'restrict_violation';
    end if;
    return new;
end $$;
create trigger group_multipliers_guard before update or delete on group_multipliers
    for each row execute function guard_dated();
create trigger fx_rates_guard before update or delete on fx_rates
    for each row execute function guard_dated();

create trigger price_versions_announce after insert or update or delete on price_versions
    for each row execute function announce_change('prices');
create trigger group_multipliers_announce after insert or update or delete on group_multipliers
    for each row execute function announce_change('prices');
create trigger fx_rates_announce after insert or update or delete on fx_rates
    for each row execute function announce_change('prices');

-- ------------------------------------------------------------------ the ledger
-- No foreign keys from the hot tables: each would cost a query a row. Accounts are never deleted, the rows
-- are written by the ledger's functions alone, and `audit conserve` proves that they agree.
create table balances (
    account_id    bigint not null references accounts,
    unit          text not null check (unit ~ '^[a-z][a-z0-9_]{0,31}$'),
    balance       bigint not null default 0,
    held          bigint not null default 0 check (held >= 0),
    debt          bigint not null default 0 check (debt >= 0),
    next_event_at timestamptz,
    primary key (account_id, unit)
) with (fillfactor = 50);
comment on table balances is
    'unit credit: nano-dollars; other units: typed quotas. balance = sum of entries = open grants - debt';
comment on column balances.next_event_at is 'earliest moment at which a grant lapses or a period begins';

create table grants (
    id         bigint generated always as identity primary key,
    account_id bigint not null,
    unit       text not null default 'credit',
    source     text not null check (source in ('initial', 'purchase', 'plan_period', 'manual', 'bonus')),
    source_id  text not null check (length(source_id) between 1 and 200),
    amount     bigint not null check (amount > 0),
    remaining  bigint not null check (remaining between 0 and amount),
    closed     boolean not null default false,
    priority   integer not null,
    expires_at timestamptz,
    reason     text not null check (length(reason) > 0),
    created_by text not null default current_user,
    created_at timestamptz not null default now(),
    foreign key (account_id, unit) references balances,
    unique (source, source_id, unit),
    check (closed or remaining > 0)
) with (fillfactor = 50);
-- "closed" and not "remaining > 0": a predicate on a column that each capture changes would forbid HOT updates.
create index grants_open on grants (account_id, unit, priority, expires_at, id) where not closed;
create index grants_by_account on grants (account_id, id);

create table allowances (
    id         bigint generated always as identity primary key,
    account_id bigint not null references accounts,
    unit       text not null,
    amount     bigint not null check (amount > 0),
    months     integer not null default 1 check (months between 1 and 12),
    anchor     timestamptz not null,
    ends_at    timestamptz,
    source_id  text not null unique,
    reason     text not null check (length(reason) > 0),
    created_at timestamptz not null default now(),
    check (ends_at is null or ends_at > anchor)
);
comment on table allowances is
    'what an account is granted anew each period, counted from the anchor; the rest of a period lapses at its end';
create index allowances_by_account on allowances (account_id);

create table budgets (
    id          bigint generated always as identity primary key,
    scope       text not null check (scope in ('global', 'account', 'token')),
    scope_id    bigint not null default 0,
    period      text not null default 'total' check (period in ('total', 'day', 'month')),
    maximum     bigint not null check (maximum >= 0),
    spent       bigint not null default 0,
    held        bigint not null default 0 check (held >= 0),
    period_ends timestamptz,
    created_at  timestamptz not null default now(),
    unique (scope, scope_id, period),
    check ((scope = 'global') = (scope_id = 0)),
    check ((period = 'total') = (period_ends is null))
) with (fillfactor = 50);
comment on table budgets is 'nano-dollars that may be spent in a period by everybody, an account or a token';

create table holds (
    request_id     uuid primary key,
    account_id     bigint not null,
    token_id       bigint,
    attempt        bigint not null,
    state          text not null default 'held' check (state in ('held', 'captured', 'released')),
    amount         bigint not null check (amount >= 0),
    quota_units    text[],
    quota_amounts  bigint[],
    budget_ids     bigint[],
    overage        numeric not null default 1,
    model          text not null,
    customer_group text not null,
    charge         bigint,
    created_at     timestamptz not null default now(),
    expires_at     timestamptz not null,
    settled_at     timestamptz,
    reason         text,
    check ((state = 'held') = (settled_at is null))
);
comment on column holds.attempt is 'tells the caller''s own retry from somebody else''s request id';
create index holds_open on holds (expires_at) where state = 'held';
create index holds_settled on holds (settled_at) where state <> 'held';

create table entries (
    id         bigint generated always as identity primary key,
    account_id bigint not null,
    unit       text not null,
    grant_id   bigint,
    kind       text not null check (kind in ('grant', 'capture', 'lapse', 'debt', 'reversal', 'adjustment')),
    amount     bigint not null check (amount <> 0),
    request_id uuid,
    reverses   bigint unique references entries,
    reason     text not null check (length(reason) > 0),
    source     text not null check (length(source) > 0),
    created_at timestamptz not null default now()
);
comment on column entries.grant_id is 'the grant that gains or pays; null: the account''s debt';
create unique index entries_capture_once on entries (request_id, unit, grant_id) nulls not distinct
    where kind = 'capture';
create index entries_by_account on entries (account_id, id);
create trigger entries_append_only before update or delete on entries
    for each row execute function forbid_change();
create trigger entries_no_truncate before truncate on entries
    for each statement execute function forbid_change();

create table usage (
    request_id        uuid not null,
    settled_at        timestamptz not null default now(),
    account_id        bigint not null,
    token_id          bigint,
    channel_id        bigint,
    model             text not null,
    customer_group    text not null,
    outcome           text not null,
    abort_rule        text,
    stream            boolean not null default false,
    admitted_at       timestamptz not null,
    started_at        timestamptz,
    duration_ms       bigint,
    first_byte_ms     bigint,
    meters            jsonb not null default '{}',
    raw_usage         jsonb,
    held              bigint not null,
    charge            bigint not null,
    plan_paid         bigint not null default 0,
    debt              bigint not null default 0,
    quotas_used       jsonb,
    grants_used       jsonb,
    exact_numerator   numeric not null default 0,
    exact_denominator numeric not null default 1,
    cost              bigint,
    sell              jsonb,
    cost_side         jsonb,
    unpriced          jsonb,
    primary key (request_id, settled_at)
) partition by range (settled_at);
comment on table usage is 'one row a settled call, with everything that its charge was computed from, by value';
create index usage_by_account on usage (account_id, settled_at);
create index usage_by_time on usage using brin (settled_at);
create table usage_default partition of usage default;

create trigger usage_append_only before update or delete on usage
    for each row execute function forbid_change();

-- ------------------------------------------------------------------ defaults of an account
create function open_balance() returns trigger language plpgsql security definer
set search_path = public, pg_temp as $$
begin
    insert into balances (account_id, unit) values (new.id, 'credit');
    return null;
end $$;
create trigger accounts_open_balance after insert on accounts
    for each row execute function open_balance();
create trigger accounts_never_deleted before delete on accounts
    for each row execute function forbid_change();

-- ------------------------------------------------------------------ privileges
-- relay_app reads everything and writes configuration; the ledger's tables it changes through functions only.
do $$
begin
    if not exists (select from pg_roles where rolname = 'relay_app') then
        raise exception 'role relay_app does not exist; create it before migrating'
            using hint = 'create role relay_app login password ''...''';
    end if;
end $$;
grant usage on schema public to relay_app;
grant select on all tables in schema public to relay_app;
revoke insert, update, delete, truncate on all tables in schema public from relay_app;
grant insert, update on accounts, tokens, channels, allowances, budgets to relay_app;
grant insert, update, delete on price_versions, price_rows to relay_app;
grant insert, update on group_multipliers, fx_rates to relay_app;
grant usage on all sequences in schema public to relay_app;
