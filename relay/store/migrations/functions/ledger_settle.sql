-- Captures and releases of many calls in one statement, decided one by one as in ledger_hold.
--
-- Captures and releases. p_list: the charge in n$; p_over: the same by the overage multiplier alone. The exact
-- fraction, quantum and minimum serve the one call that a plan period pays in part: what that pays, and the rest
-- times the multiplier. p_quotas: typed units used, {unit: quantity}. p_documents: evidence that many members
-- share; p_sell and p_cost_side are positions in it.
create or replace function ledger_settle(
    p_request uuid[], p_release boolean[], p_list bigint[], p_over bigint[], p_numerator numeric[],
    p_denominator numeric[], p_quantum bigint[], p_minimum bigint[], p_reason text[], p_quotas text[],
    p_channel bigint[], p_outcome text[], p_abort text[], p_stream boolean[], p_started timestamptz[],
    p_duration bigint[], p_first_byte bigint[], p_cost bigint[], p_meters text[], p_raw text[],
    p_documents text[], p_sell integer[], p_cost_side integer[], p_unpriced text[], p_attempts text[],
    p_facts text[]
) returns table (outcome text, charge bigint)
language plpgsql security definer
set search_path = public, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    members       integer := cardinality(p_request);
    result        text[] := array_fill(null::text, array[members]);
    charged       bigint[] := array_fill(0::bigint, array[members]);
    -- null where a member has none
    plan_paid     bigint[];
    indebted      bigint[];
    used          text[];
    documents     jsonb[] := p_documents::jsonb[];
    -- credit rows of the accounts, and what this batch does to them
    purse         integer := 0;
    purse_id      bigint[];
    purse_paid    bigint[];
    purse_held    bigint[];
    purse_debt    bigint[];
    -- open grants, account by account in the order in which they are drained
    first         integer := 1;
    grant_id      bigint[];
    grant_of      bigint[];
    grant_unit    text[];
    grant_left    bigint[];
    grant_plan    boolean[];
    grant_touched boolean[];
    -- typed units that holds reserved and calls used
    unit_of       bigint[];
    unit_name     text[];
    unit_paid     bigint[];
    unit_held     bigint[];
    unit_debt     bigint[];
    entry_member  integer[];
    entry_account bigint[];
    entry_unit    text[];
    entry_grant   bigint[];
    entry_amount  bigint[];
    m             record;
    quota         record;
    account       bigint := null;
    owing         bigint;
    taken         bigint;
    exact         numeric;
    slot          integer;
    typed         boolean := false;
    limited       boolean := false;
    guarded       boolean := false;
    channelled    boolean := false;
    changed       boolean := false;
begin
    select array_agg(b.account_id), array_agg(0::bigint), array_agg(0::bigint), array_agg(0::bigint)
      into purse_id, purse_paid, purse_held, purse_debt
      from (select b.account_id from balances b
             where b.account_id = any (array(select h.account_id from holds h where h.request_id = any (p_request)))
               and b.unit = 'credit'
             order by b.account_id for no key update) b;
    select coalesce(bool_or(h.quotas is not null), false), coalesce(bool_or(h.budget_ids is not null), false),
           coalesce(bool_or(b.token_id is not null), false),
           exists (select from channel_budgets c where c.channel_id = any (p_channel))
      into typed, limited, guarded, channelled
      from holds h left join spend_breakers b on b.token_id = h.token_id where h.request_id = any (p_request);
    if limited then
        perform from (
            select from budgets b
             where b.id in (select unnest(h.budget_ids) from holds h where h.request_id = any (p_request))
             order by b.id for no key update) locked;
    end if;
    select array_agg(g.id), array_agg(g.account_id), array_agg(g.unit), array_agg(g.remaining), array_agg(g.plan),
           array_agg(false)
      into grant_id, grant_of, grant_unit, grant_left, grant_plan, grant_touched
      from (select g.id, g.account_id, g.unit, g.remaining, g.source = 'plan_period' as plan
              from grants g
             where g.account_id = any (purse_id) and not g.closed and (typed or g.unit = 'credit')
             order by g.account_id, g.source = 'plan_period' desc, g.priority, g.expires_at, g.id) g;

    for m in
        select u.ord::integer as ord, h.account_id, h.state, h.charge, h.overage, h.amount, h.quotas
          from unnest(p_request) with ordinality u (request_id, ord)
          -- A hold whose account is not locked was written after these were: it does not exist yet.
          left join holds h on h.request_id = u.request_id and h.account_id = any (purse_id)
         order by h.account_id, u.ord
    loop
        if m.state is null then
            result[m.ord] := 'unknown';
            continue;
        elsif m.state <> 'held' then
            result[m.ord] := m.state;
            charged[m.ord] := coalesce(m.charge, 0);
            continue;
        end if;
        changed := true;
        if m.account_id is distinct from account then
            account := m.account_id;
            while purse_id[purse + 1] <= account loop
                purse := purse + 1;
            end loop;
            while grant_of[first] < account loop
                first := first + 1;
            end loop;
        end if;
        purse_held[purse] := purse_held[purse] + m.amount;
        if m.quotas is not null then
            for quota in select key, value::bigint as units from jsonb_each_text(m.quotas) loop
                unit_of := unit_of || account;
                unit_name := unit_name || quota.key;
                unit_held := unit_held || quota.units;
                unit_paid := unit_paid || 0::bigint;
                unit_debt := unit_debt || 0::bigint;
            end loop;
        end if;
        if p_release[m.ord] then
            result[m.ord] := 'release';
            continue;
        end if;

        result[m.ord] := 'capture';
        owing := p_list[m.ord];
        if m.overage <> 1 then
            plan_paid[m.ord] := 0;
            slot := first;
            while grant_of[slot] = account and grant_plan[slot] loop
                if grant_unit[slot] = 'credit' then
                    plan_paid[m.ord] := plan_paid[m.ord] + grant_left[slot];
                end if;
                slot := slot + 1;
            end loop;
            plan_paid[m.ord] := least(plan_paid[m.ord], owing);
            if plan_paid[m.ord] = 0 then
                owing := p_over[m.ord];
            elsif plan_paid[m.ord] < owing then
                exact := greatest(p_numerator[m.ord], p_minimum[m.ord] * p_denominator[m.ord]);
                exact := greatest(exact - plan_paid[m.ord] * p_denominator[m.ord], 0) * m.overage;
                owing := plan_paid[m.ord] + p_quantum[m.ord]
                       * div(2 * exact + p_denominator[m.ord] * p_quantum[m.ord],
                             2 * p_denominator[m.ord] * p_quantum[m.ord]);
            end if;
        end if;
        charged[m.ord] := owing;
        purse_paid[purse] := purse_paid[purse] + owing;
        slot := first;
        while owing > 0 and grant_of[slot] = account loop
            if grant_left[slot] > 0 and grant_unit[slot] = 'credit' then
                taken := least(grant_left[slot], owing);
                grant_left[slot] := grant_left[slot] - taken;
                grant_touched[slot] := true;
                owing := owing - taken;
                entry_member := entry_member || m.ord;
                entry_account := entry_account || account;
                entry_unit := entry_unit || 'credit'::text;
                entry_grant := entry_grant || grant_id[slot];
                entry_amount := entry_amount || -taken;
                used[m.ord] := coalesce(used[m.ord] || ',', '{') || '"' || grant_id[slot] || '":' || taken;
            end if;
            slot := slot + 1;
        end loop;
        used[m.ord] := used[m.ord] || '}';
        if owing > 0 then
            indebted[m.ord] := owing;
            purse_debt[purse] := purse_debt[purse] + owing;
            entry_member := entry_member || m.ord;
            entry_account := entry_account || account;
            entry_unit := entry_unit || 'credit'::text;
            entry_grant := entry_grant || null::bigint;
            entry_amount := entry_amount || -owing;
        end if;
        -- Typed units: never more than the hold reserved, and what is reserved does not lapse.
        if p_quotas[m.ord] is not null then
            for quota in select key, value::bigint as units from jsonb_each_text(p_quotas[m.ord]::jsonb) loop
                owing := quota.units;
                slot := first;
                while owing > 0 and grant_of[slot] = account loop
                    if grant_left[slot] > 0 and grant_unit[slot] = quota.key then
                        taken := least(grant_left[slot], owing);
                        grant_left[slot] := grant_left[slot] - taken;
                        grant_touched[slot] := true;
                        owing := owing - taken;
                        entry_member := entry_member || m.ord;
                        entry_account := entry_account || account;
                        entry_unit := entry_unit || quota.key;
                        entry_grant := entry_grant || grant_id[slot];
                        entry_amount := entry_amount || -taken;
                    end if;
                    slot := slot + 1;
                end loop;
                if owing > 0 then
                    entry_member := entry_member || m.ord;
                    entry_account := entry_account || account;
                    entry_unit := entry_unit || quota.key;
                    entry_grant := entry_grant || null::bigint;
                    entry_amount := entry_amount || -owing;
                end if;
                unit_of := unit_of || account;
                unit_name := unit_name || quota.key;
                unit_held := unit_held || 0::bigint;
                unit_paid := unit_paid || quota.units;
                unit_debt := unit_debt || owing;
            end loop;
        end if;
    end loop;
    if not changed then
        -- Even an answer that changes nothing is confirmed by the standby: a primary that was replaced without
        -- knowing it cannot answer, neither that it knows no such hold nor that it has written one.
        perform pg_logical_emit_message(true, 'ledger', '');
        return query select u.* from unnest(result, charged) u (result, charged);
        return;
    end if;

    update grants g set remaining = u.remaining, closed = (u.remaining = 0)
      from unnest(grant_id, grant_left, grant_touched) u (id, remaining, touched)
     where u.touched and g.id = u.id;
    update balances b set balance = b.balance - purse_paid[array_position(purse_id, b.account_id)],
                          held = b.held - purse_held[array_position(purse_id, b.account_id)],
                          debt = b.debt + purse_debt[array_position(purse_id, b.account_id)]
     where b.account_id = any (purse_id) and b.unit = 'credit';
    if typed then
        update balances b set balance = b.balance - u.paid, held = b.held - u.held, debt = b.debt + u.debt
          from (select account_id, unit, sum(paid)::bigint as paid, sum(held)::bigint as held,
                       sum(debt)::bigint as debt
                  from unnest(unit_of, unit_name, unit_paid, unit_held, unit_debt)
                           u (account_id, unit, paid, held, debt)
                 group by account_id, unit) u
         where b.account_id = u.account_id and b.unit = u.unit;
    end if;
    insert into entries (account_id, unit, grant_id, kind, amount, request_id, reason, source)
    select e.account_id, e.unit, e.grant_id, 'capture', e.amount, p_request[e.member], p_reason[e.member], 'call'
      from unnest(entry_member, entry_account, entry_unit, entry_grant, entry_amount)
               e (member, account_id, unit, grant_id, amount);
    if limited then
        update budgets b set held = b.held - s.held, spent = b.spent + s.spent
          from (select id, sum(h.amount)::bigint as held, sum(u.charged)::bigint as spent
                  from unnest(p_request, charged, result) u (request_id, charged, result)
                  join holds h on h.request_id = u.request_id, unnest(h.budget_ids) id
                 where u.result in ('capture', 'release')
                 group by id) s
         where b.id = s.id;
    end if;
    if guarded then
        update spend_breakers b
           set spent = s.charge + case when b.hour = s.hour then b.spent else 0 end,
               lifted = case when b.hour = s.hour then b.lifted else 0 end,
               hour = s.hour
          from (select h.token_id, sum(u.charged)::bigint as charge, date_trunc('hour', now(), 'UTC') as hour
                  from unnest(p_request, charged, result) u (request_id, charged, result)
                  join holds h on h.request_id = u.request_id
                 where u.result = 'capture'
                 group by h.token_id) s
         where b.token_id = s.token_id and b.hour <= s.hour;
    end if;
    with done as (
        update holds h
           set state = case u.result when 'capture' then 'captured' else 'released' end,
               charge = u.charged, settled_at = now(), reason = u.reason
          from unnest(p_request, result, charged, p_reason) with ordinality
                   u (request_id, result, charged, reason, ord)
         where h.request_id = u.request_id and u.result in ('capture', 'release')
        returning h.request_id, h.account_id, h.token_id, h.amount, h.model, h.customer_group, h.created_at,
                  h.overage, u.ord::integer as ord)
    insert into usage (request_id, account_id, token_id, model, customer_group, admitted_at, held, charge,
                       plan_paid, debt, overage, grants_used, quotas_used, channel_id, outcome, abort_rule,
                       stream, started_at, duration_ms, first_byte_ms, cost, meters, raw_usage, sell, cost_side,
                       unpriced, attempts, facts, exact_numerator, exact_denominator)
    select d.request_id, d.account_id, d.token_id, d.model, d.customer_group, d.created_at, d.amount,
           charged[d.ord], coalesce(plan_paid[d.ord], 0), coalesce(indebted[d.ord], 0), d.overage, used[d.ord]::jsonb,
           p_quotas[d.ord]::jsonb, p_channel[d.ord], p_outcome[d.ord], p_abort[d.ord], p_stream[d.ord],
           p_started[d.ord], p_duration[d.ord], p_first_byte[d.ord], p_cost[d.ord], p_meters[d.ord]::jsonb,
           p_raw[d.ord]::jsonb, documents[p_sell[d.ord]], documents[p_cost_side[d.ord]],
           p_unpriced[d.ord]::jsonb, p_attempts[d.ord]::jsonb, p_facts[d.ord]::jsonb,
           p_numerator[d.ord], p_denominator[d.ord]
      from done d;
    if channelled then
        perform from (
            select from channel_budgets b
             where b.channel_id = any (p_channel)
             order by b.channel_id, b.period for no key update) locked;
        update channel_budgets b
           set spent = s.cost + case when b.period_ends > now() then b.spent else 0 end,
               period_ends = greatest(b.period_ends, budget_period_end(b.period, now()))
          from (select u.channel, sum(u.cost)::bigint as cost
                  from unnest(p_channel, p_cost, result) u (channel, cost, result)
                 where u.result = 'capture'
                 group by u.channel having sum(u.cost) > 0) s
         where b.channel_id = s.channel;
    end if;
    return query select u.* from unnest(result, charged) u (result, charged);
end $$;
