-- What all tokens of an account may use together: requests and tokens a minute, calls at a time; null: no limit.
alter table accounts add column rpm bigint, add column tpm bigint, add column concurrency bigint,
    add column model_limits jsonb;
alter table tokens add column model_limits jsonb;
comment on column accounts.model_limits is '{model: {rpm, tpm, concurrency}}: of single models, beside the rest';
comment on column tokens.model_limits is '{model: {rpm, tpm, concurrency}}: of single models, beside the rest';

-- A token whose charges of the running hour have reached its maximum is refused until the hour is over, or until an
-- operator lifts its breaker: then it may spend the maximum once more. Charges are counted in the hour in which they
-- are settled, by ledger_settle; nobody else writes them.
create table spend_breakers (
    token_id bigint primary key,
    maximum  bigint not null check (maximum > 0),
    hour     timestamptz not null,
    spent    bigint not null default 0,
    lifted   bigint not null default 0
) with (fillfactor = 50);
comment on column spend_breakers.maximum is 'nano-dollars an hour (UTC)';
comment on column spend_breakers.hour is 'begin of the hour that spent counts';
comment on column spend_breakers.lifted is 'what had been spent of that hour when the breaker was lifted';

create table spend_breaker_changes (
    id         bigint generated always as identity primary key,
    token_id   bigint not null,
    kind       text not null check (kind in ('set', 'lift', 'clear')),
    maximum    bigint not null,
    spent      bigint not null,
    reason     text not null check (length(reason) > 0),
    actor      text not null check (length(actor) > 0),
    created_at timestamptz not null default now()
);
comment on column spend_breaker_changes.spent is 'nano-dollars of the running hour, at the change';
create trigger spend_breaker_changes_append_only before update or delete on spend_breaker_changes
    for each row execute function forbid_change();
create trigger spend_breaker_changes_no_truncate before truncate on spend_breaker_changes
    for each statement execute function forbid_change();

revoke insert, update, delete on spend_breakers, spend_breaker_changes from relay_app;
grant select on spend_breakers, spend_breaker_changes to relay_app;
