-- What time does to an account: expired grants lapse, the current period of each allowance is granted.
-- What open holds may still need does not lapse; the rest of it does when they are settled. The credit row
-- remembers when the next of this is due for any unit of the account.
create or replace function ledger_roll(p_account bigint) returns void language plpgsql as $$
declare
    purse balances;
    expired grants;
    allowance allowances;
    period tstzrange;
    lapsing bigint;
    next_event timestamptz;
begin
    perform from balances where account_id = p_account and unit = 'credit' for no key update;
    for allowance in
        select * from allowances
        where account_id = p_account and anchor <= now() and (ends_at is null or ends_at > now())
    loop
        period := allowance_period(allowance.anchor, allowance.months, now());
        perform ledger_add_grant(
            p_account, allowance.unit, allowance.amount, 'plan_period',
            allowance.source_id || ':' || to_char(lower(period) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
            0, least(upper(period), allowance.ends_at), allowance.reason, 'period');
    end loop;
    for expired in
        select * from grants where account_id = p_account and not closed and expires_at <= now()
        order by unit, priority, expires_at, id
    loop
        select * into purse from balances where account_id = p_account and unit = expired.unit;
        lapsing := least(expired.remaining, greatest(purse.balance + purse.debt - purse.held, 0));
        if lapsing > 0 then
            update grants set remaining = remaining - lapsing, closed = (remaining = lapsing)
             where id = expired.id;
            insert into entries (account_id, unit, grant_id, kind, amount, reason, source)
            values (p_account, expired.unit, expired.id, 'lapse', -lapsing, 'expired', 'grant:' || expired.id);
            update balances set balance = balance - lapsing
             where account_id = p_account and unit = expired.unit;
        end if;
    end loop;
    select min(expires_at) into next_event from grants where account_id = p_account and not closed;
    select least(next_event, min(case when anchor > now() then anchor
                                      else upper(allowance_period(anchor, months, now())) end))
      into next_event from allowances
     where account_id = p_account and (ends_at is null or ends_at > now());
    update balances set next_event_at = next_event
     where account_id = p_account and unit = 'credit' and next_event_at is distinct from next_event;
end $$;
