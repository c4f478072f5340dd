-- One grant under the account's lock. Its source id makes it happen once; an open debt is paid from it first.
create or replace function ledger_add_grant(
    p_account bigint, p_unit text, p_amount bigint, p_source text, p_source_id text, p_priority integer,
    p_expires timestamptz, p_reason text, p_actor text
) returns grant_result language plpgsql as $$
declare
    made bigint;
    owed bigint;
    known grants;
begin
    perform from balances where account_id = p_account and unit = 'credit' for no key update;
    select debt into owed from balances where account_id = p_account and unit = p_unit;
    if not found then
        return row(null::bigint, 'no_account'::text);
    end if;
    insert into grants (account_id, unit, source, source_id, amount, remaining, closed, priority, expires_at,
                        reason, created_by)
    values (p_account, p_unit, p_source, p_source_id, p_amount, p_amount - least(owed, p_amount),
            owed >= p_amount, p_priority, p_expires, p_reason, p_actor)
    on conflict (source, source_id, unit) do nothing returning id into made;
    if made is null then
        select * into known from grants where source = p_source and source_id = p_source_id and unit = p_unit;
        return row(known.id, case when known.account_id = p_account and known.amount = p_amount
                                  then 'known'::text else 'conflict' end);
    end if;
    insert into entries (account_id, unit, grant_id, kind, amount, reason, source)
    values (p_account, p_unit, made, 'grant', p_amount, p_reason, p_source || ':' || p_source_id);
    if owed > 0 then
        insert into entries (account_id, unit, grant_id, kind, amount, reason, source)
        values (p_account, p_unit, made, 'debt', -least(owed, p_amount), 'pays debt', 'grant:' || made),
               (p_account, p_unit, null, 'debt', least(owed, p_amount), 'paid by grant', 'grant:' || made);
    end if;
    update balances set balance = balance + p_amount, debt = debt - least(owed, p_amount)
     where account_id = p_account and unit = p_unit;
    update balances set next_event_at = least(next_event_at, p_expires)
     where account_id = p_account and unit = 'credit' and p_expires is not null;
    return row(made, 'made'::text);
end $$;
