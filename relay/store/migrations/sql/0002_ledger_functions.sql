-- The ledger's only writers. relay_app may call them and has no other way to change these tables.
--
-- Locks are taken in one order by all of them: credit balances by account, then budgets by id. The credit row of
-- an account guards all of the account: its other balances, its grants and its holds. Nobody changes those
-- without it, so that what is read after it was taken stays true until the commit. That is why each function
-- reads in a later statement than it locks.

alter table price_rows alter column unit_price drop not null;
alter table price_rows add check ((unit_price is null) = (fallback is not null));
alter table usage add column attempts jsonb, add column overage numeric;
drop index holds_settled;
create index holds_by_time on holds using brin (created_at);

create type grant_result as (grant_id bigint, outcome text);

-- The period of an allowance that a moment falls into.
create function allowance_period(anchor timestamptz, months integer, at timestamptz)
returns tstzrange language plpgsql stable set timezone = 'UTC' as $$
declare
    gone interval := age(at, anchor);
    step integer := (extract(year from gone) * 12 + extract(month from gone))::integer / months;
begin
    -- Each start is counted from the anchor, so that the 31st does not drift; age() may be a month off.
    while anchor + make_interval(months => step * months) > at loop
        step := step - 1;
    end loop;
    while anchor + make_interval(months => (step + 1) * months) <= at loop
        step := step + 1;
    end loop;
    return tstzrange(anchor + make_interval(months => step * months),
                     anchor + make_interval(months => (step + 1) * months));
end $$;

create function ledger_grant(
    p_account bigint, p_unit text, p_amount bigint, p_source text, p_source_id text, p_priority integer,
    p_expires timestamptz, p_reason text, p_actor text
) returns grant_result language plpgsql security definer set search_path = public, pg_temp as $$
begin
    if not exists (select from accounts where id = p_account) then
        return row(null::bigint, 'no_account'::text);
    end if;
    insert into balances (account_id, unit) values (p_account, p_unit) on conflict do nothing;
    return ledger_add_grant(p_account, p_unit, p_amount, p_source, p_source_id, p_priority, p_expires,
                            p_reason, p_actor);
end $$;

-- A new or changed allowance takes effect at once.
create function allowance_changed() returns trigger language plpgsql security definer
set search_path = public, pg_temp as $$
begin
    insert into balances (account_id, unit) values (new.account_id, new.unit) on conflict do nothing;
    perform ledger_roll(new.account_id);
    return null;
end $$;
create trigger allowances_take_effect after insert or update on allowances
    for each row execute function allowance_changed();

create function budget_period_end(period text, at timestamptz) returns timestamptz
language sql stable set timezone = 'UTC' as $$
    select case when period = 'total' then null else date_trunc(period, at) + ('1 ' || period)::interval end
$$;

-- ------------------------------------------------------------------ corrections
-- Takes back one entry by its opposite. A charge returns to the grant that paid it (which no longer expires if
-- it has meanwhile); a grant is taken from what is left of it and, for the rest, becomes debt.
create function ledger_reverse(p_entry bigint, p_reason text, p_source text)
returns table (outcome text, entry_id bigint)
language plpgsql security definer set search_path = public, pg_temp as $$
#variable_conflict use_column
declare
    wrong entries;
    payer grants;
    part  bigint;
    made  bigint;
begin
    select * into wrong from entries where id = p_entry;
    if not found then
        return query select 'unknown', null::bigint;
        return;
    end if;
    perform from balances where account_id = wrong.account_id and unit = 'credit' for no key update;
    select id into made from entries where reverses = p_entry;
    if found then
        return query select 'known', made;
        return;
    end if;
    if wrong.kind not in ('capture', 'grant') then
        return query select 'not_reversible', null::bigint;
        return;
    end if;
    select * into payer from grants where id = wrong.grant_id;
    if wrong.kind = 'grant' then
        part := least(payer.remaining, wrong.amount);
        update grants set remaining = remaining - part, closed = (remaining = part) where id = payer.id;
        insert into entries (account_id, unit, grant_id, kind, amount, reverses, reason, source)
        values (wrong.account_id, wrong.unit, case when part > 0 then payer.id end, 'reversal',
                case when part > 0 then -part else -wrong.amount end, p_entry, p_reason, p_source)
        returning id into made;
        if part between 1 and wrong.amount - 1 then
            insert into entries (account_id, unit, grant_id, kind, amount, reason, source)
            values (wrong.account_id, wrong.unit, null, 'adjustment', part - wrong.amount, p_reason, p_source);
        end if;
        update balances set balance = balance - wrong.amount, debt = debt + wrong.amount - part
         where account_id = wrong.account_id and unit = wrong.unit;
    elsif wrong.grant_id is null then
        update balances set balance = balance - wrong.amount, debt = debt + wrong.amount
         where account_id = wrong.account_id and unit = wrong.unit and debt >= -wrong.amount;
        if not found then  -- a later grant has paid it: give the amount back as a grant
            return query select 'debt_was_paid', null::bigint;
            return;
        end if;
        insert into entries (account_id, unit, kind, amount, reverses, request_id, reason, source)
        values (wrong.account_id, wrong.unit, 'reversal', -wrong.amount, p_entry, wrong.request_id, p_reason,
                p_source)
        returning id into made;
    else
        insert into entries (account_id, unit, grant_id, kind, amount, reverses, request_id, reason, source)
        values (wrong.account_id, wrong.unit, payer.id, 'reversal', -wrong.amount, p_entry, wrong.request_id,
                p_reason, p_source)
        returning id into made;
        update grants set remaining = remaining - wrong.amount, closed = false,
                          expires_at = case when expires_at <= now() then null else expires_at end
         where id = payer.id;
        update balances set balance = balance - wrong.amount
         where account_id = wrong.account_id and unit = wrong.unit;
    end if;
    return query select 'made', made;
end $$;

-- ------------------------------------------------------------------ privileges
revoke execute on function ledger_grant, ledger_reverse from public;
grant execute on function ledger_grant, ledger_reverse to relay_app;
