-- Holds and settlements of many calls in one statement. Each member is decided by itself, in its order of
-- arrival, and never fails another: refusals are results, not exceptions.
--
-- The members of a batch are visited account by account, beside the locked rows in the same order: two sorted
-- lists, no joins between arrays (the planner takes each array for ten rows and would join a batch in squares).

drop function if exists ledger_hold(uuid[], bigint[], bigint[], bigint[], bigint[], bigint[], text[], text[],
    timestamptz[], integer[], text[], bigint[]);
drop function if exists ledger_settle(uuid[], boolean[], bigint[], bigint[], numeric[], numeric[], bigint[],
    bigint[], text[], integer[], text[], bigint[], bigint[], text[], text[], boolean[], timestamptz[], bigint[],
    bigint[], bigint[], text[], text[], text[], text[], text[], text[]);
alter table holds drop column quota_units, drop column quota_amounts, add column quotas jsonb;
comment on column holds.quotas is 'typed units that are reserved, {unit: quantity}';

-- p_quotas: {unit: quantity} a member, or null. p_covered: what to hold if they are reserved in full.
create function ledger_hold(
    p_request uuid[], p_attempt bigint[], p_account bigint[], p_token bigint[], p_amount bigint[],
    p_covered bigint[], p_model text[], p_group text[], p_expires timestamptz[], p_quotas text[]
) returns table (outcome text, missing bigint, quotas text, overage text)
language plpgsql security definer
set search_path = public, pg_temp set enable_seqscan = off set jit = off
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    members      integer := cardinality(p_request);
    result       text[] := array_fill(null::text, array[members]);
    short        bigint[] := array_fill(null::bigint, array[members]);
    amount       bigint[] := p_amount;
    reserved     text[] := array_fill(null::text, array[members]);
    bound        text[] := array_fill(null::text, array[members]);
    factor       numeric[] := array_fill(null::numeric, array[members]);
    -- credit rows by account
    purse        integer := 0;
    purse_id     bigint[];
    purse_free   bigint[];
    purse_active boolean[];
    purse_factor numeric[];
    purse_taken  bigint[];
    -- typed balances by account
    unit_at      integer := 1;
    unit_of      bigint[];
    unit_name    text[];
    unit_free    bigint[];
    unit_taken   bigint[];
    -- budgets
    budget_id    bigint[];
    budget_scope text[];
    budget_of    bigint[];
    budget_free  bigint[];
    budget_taken bigint[];
    known        boolean;
    due          bigint[];
    lapsed       boolean;
    m            record;
    quota        record;
    account      bigint := null;
    need         bigint;
    covered      boolean;
    refused      text;
    slot         integer;
    written      uuid[];
begin
    for attempt in 1..2 loop
        select array_agg(b.account_id), array_agg(b.free), array_agg(b.active), array_agg(b.factor),
               array_agg(b.account_id) filter (where b.due), array_agg(0::bigint)
          into purse_id, purse_free, purse_active, purse_factor, due, purse_taken
          from (select b.account_id, b.balance - b.held + a.credit_limit as free, a.status = 'active' as active,
                       a.overage_multiplier as factor,
                       coalesce(b.next_event_at <= now(), false) as due
                  from balances b join accounts a on a.id = b.account_id
                 where b.account_id = any (p_account) and b.unit = 'credit'
                 order by b.account_id for no key update of b) b;
        exit when due is null or attempt = 2;
        perform ledger_roll(id) from unnest(due) id;
    end loop;

    if p_quotas is not null then
        select array_agg(b.account_id), array_agg(b.unit), array_agg(b.balance - b.held), array_agg(0::bigint)
          into unit_of, unit_name, unit_free, unit_taken
          from (select * from balances b where b.account_id = any (p_account) and b.unit <> 'credit'
                 order by b.account_id) b;
    end if;

    for attempt in 1..2 loop
        select array_agg(b.id), array_agg(b.scope), array_agg(b.scope_id),
               array_agg(b.maximum - b.spent - b.held), array_agg(0::bigint), bool_or(b.period_ends <= now())
          into budget_id, budget_scope, budget_of, budget_free, budget_taken, lapsed
          from (select * from budgets
                 where scope = 'global' and scope_id = 0
                    or scope = 'account' and scope_id = any (p_account)
                    or scope = 'token' and scope_id = any (p_token)
                 order by id for no key update) b;
        exit when lapsed is distinct from true or attempt = 2;
        update budgets set spent = 0, period_ends = budget_period_end(period, now())
         where id = any (budget_id) and period_ends <= now();
    end loop;

    known := exists (select from holds h where h.request_id = any (p_request));

    for m in
        select u.* from unnest(p_request, p_attempt, p_account, p_token, p_amount, p_covered, p_quotas)
            with ordinality u (request_id, attempt, account_id, token_id, amount, covered, quotas, ord)
         order by u.account_id, u.ord
    loop
        if m.account_id is distinct from account then
            account := m.account_id;
            purse := purse + case when purse_id[purse + 1] = account then 1 else 0 end;
            while unit_of[unit_at] < account loop
                unit_at := unit_at + 1;
            end loop;
        end if;
        if known then
            select case when h.attempt <> m.attempt then 'duplicate' when h.state <> 'held' then 'ended'
                        else 'known' end, h.quotas::text, h.overage
              into refused, reserved[m.ord], factor[m.ord]
              from holds h where h.request_id = m.request_id;
            if found then
                result[m.ord] := refused;
                continue;
            end if;
        end if;
        if purse = 0 or purse_id[purse] <> account or not purse_active[purse] then
            result[m.ord] := 'inactive';
            continue;
        end if;

        -- Typed quotas are used before credit. What they do not cover in full is held in credit as a whole.
        covered := false;
        if m.quotas is not null and unit_of[unit_at] = account then
            covered := true;
            for quota in select key, value::bigint as wanted from jsonb_each_text(m.quotas::jsonb) loop
                slot := unit_at;
                while unit_of[slot] = account and unit_name[slot] <> quota.key loop
                    slot := slot + 1;
                end loop;
                covered := covered and coalesce(unit_of[slot] = account and unit_free[slot] >= quota.wanted, false);
            end loop;
        end if;
        need := case when covered then m.covered else m.amount end;
        if purse_factor[purse] > 1 then
            need := ceil(need * purse_factor[purse]);
        end if;
        if need > 0 and purse_free[purse] < need then
            result[m.ord] := 'credit';
            short[m.ord] := need - purse_free[purse];
            continue;
        end if;
        refused := null;
        for slot in 1..coalesce(cardinality(budget_id), 0) loop
            if need > 0 and budget_free[slot] < need
               and (budget_scope[slot] = 'global' or budget_scope[slot] = 'account' and budget_of[slot] = account
                    or budget_scope[slot] = 'token' and budget_of[slot] = m.token_id) then
                refused := 'budget:' || budget_scope[slot];
                short[m.ord] := need - budget_free[slot];
            end if;
        end loop;
        if refused is not null then
            result[m.ord] := refused;
            continue;
        end if;

        result[m.ord] := 'held';
        amount[m.ord] := need;
        factor[m.ord] := purse_factor[purse];
        purse_free[purse] := purse_free[purse] - need;
        purse_taken[purse] := purse_taken[purse] + need;
        if m.quotas is not null and unit_of[unit_at] = account then
            for quota in select key, value::bigint as wanted from jsonb_each_text(m.quotas::jsonb) loop
                slot := unit_at;
                while unit_of[slot] = account and unit_name[slot] <> quota.key loop
                    slot := slot + 1;
                end loop;
                if unit_of[slot] = account and unit_free[slot] > 0 then
                    quota.wanted := least(quota.wanted, unit_free[slot]);
                    unit_free[slot] := unit_free[slot] - quota.wanted;
                    unit_taken[slot] := unit_taken[slot] + quota.wanted;
                    reserved[m.ord] := coalesce(reserved[m.ord] || ',', '{') || '"' || quota.key || '":'
                                       || quota.wanted;
                end if;
            end loop;
            reserved[m.ord] := reserved[m.ord] || '}';
        end if;
        for slot in 1..coalesce(cardinality(budget_id), 0) loop
            if budget_scope[slot] = 'global' or budget_scope[slot] = 'account' and budget_of[slot] = account
               or budget_scope[slot] = 'token' and budget_of[slot] = m.token_id then
                budget_free[slot] := budget_free[slot] - need;
                budget_taken[slot] := budget_taken[slot] + need;
                bound[m.ord] := coalesce(bound[m.ord] || ',', '{') || budget_id[slot];
            end if;
        end loop;
        bound[m.ord] := bound[m.ord] || '}';
    end loop;

    with made as (
        insert into holds (request_id, attempt, account_id, token_id, amount, model, customer_group, expires_at,
                           quotas, budget_ids, overage)
        select u.request_id, u.attempt, u.account_id, u.token_id, u.amount, u.model, u.customer_group,
               u.expires_at, u.quotas::jsonb, u.budgets::bigint[], u.overage
          from unnest(p_request, p_attempt, p_account, p_token, amount, p_model, p_group, p_expires, reserved,
                      bound, factor, result)
                   u (request_id, attempt, account_id, token_id, amount, model, customer_group, expires_at,
                      quotas, budgets, overage, result)
         where u.result = 'held'
         order by u.request_id
        on conflict (request_id) do nothing
        returning request_id)
    select array_agg(request_id) into written from made;

    -- Another session wrote the same request id in this very moment: that member takes back what it took.
    if coalesce(cardinality(written), 0) < cardinality(array_positions(result, 'held')) then
        for m in
            select u.* from unnest(p_request, p_account, amount, reserved, bound, result)
                with ordinality u (request_id, account_id, amount, quotas, budgets, result, ord)
             where u.result = 'held' and u.request_id <> all (coalesce(written, '{}'))
        loop
            result[m.ord] := 'duplicate';
            reserved[m.ord] := null;
            slot := array_position(purse_id, m.account_id);
            purse_taken[slot] := purse_taken[slot] - m.amount;
            for slot in 1..coalesce(cardinality(unit_of), 0) loop
                if unit_of[slot] = m.account_id then
                    unit_taken[slot] := unit_taken[slot] - coalesce((m.quotas::jsonb ->> unit_name[slot])::bigint, 0);
                end if;
            end loop;
            for slot in 1..coalesce(cardinality(budget_id), 0) loop
                if budget_id[slot] = any (m.budgets::bigint[]) then
                    budget_taken[slot] := budget_taken[slot] - m.amount;
                end if;
            end loop;
        end loop;
    end if;

    update balances b set held = b.held + u.taken
      from unnest(purse_id, purse_taken) u (account_id, taken)
     where b.account_id = u.account_id and b.unit = 'credit' and u.taken <> 0;
    if unit_of is not null then
        update balances b set held = b.held + u.taken
          from unnest(unit_of, unit_name, unit_taken) u (account_id, unit, taken)
         where b.account_id = u.account_id and b.unit = u.unit and u.taken <> 0;
    end if;
    if budget_id is not null then
        update budgets b set held = b.held + u.taken
          from unnest(budget_id, budget_taken) u (id, taken) where b.id = u.id and u.taken <> 0;
    end if;
    return query
        select case when u.result = 'known' then 'held' else u.result end, u.short, u.quotas, u.overage::text
          from unnest(result, short, reserved, factor) u (result, short, quotas, overage);
end $$;

-- Captures and releases. p_list: the charge in n$; p_over: the same by the overage multiplier alone. The exact
-- fraction, quantum and minimum serve the one call that a plan period pays in part: what that pays, and the rest
-- times the multiplier. p_quotas: typed units used, {unit: quantity}. p_documents: evidence that many members
-- share; p_sell and p_cost_side are positions in it.
create function ledger_settle(
    p_request uuid[], p_release boolean[], p_list bigint[], p_over bigint[], p_numerator numeric[],
    p_denominator numeric[], p_quantum bigint[], p_minimum bigint[], p_reason text[], p_quotas text[],
    p_channel bigint[], p_outcome text[], p_abort text[], p_stream boolean[], p_started timestamptz[],
    p_duration bigint[], p_first_byte bigint[], p_cost bigint[], p_meters text[], p_raw text[],
    p_documents text[], p_sell integer[], p_cost_side integer[], p_unpriced text[], p_attempts text[]
) returns table (outcome text, charge bigint)
language plpgsql security definer
set search_path = public, pg_temp set enable_seqscan = off set jit = off
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    members       integer := cardinality(p_request);
    result        text[] := array_fill(null::text, array[members]);
    charged       bigint[] := array_fill(0::bigint, array[members]);
    plan_paid     bigint[] := array_fill(0::bigint, array[members]);
    indebted      bigint[] := array_fill(0::bigint, array[members]);
    used          text[] := array_fill(null::text, array[members]);
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
    unit_of       bigint[] := '{}';
    unit_name     text[] := '{}';
    unit_paid     bigint[] := '{}';
    unit_held     bigint[] := '{}';
    unit_debt     bigint[] := '{}';
    entry_member  integer[] := '{}';
    entry_unit    text[] := '{}';
    entry_grant   bigint[] := '{}';
    entry_amount  bigint[] := '{}';
    m             record;
    quota         record;
    account       bigint := null;
    owing         bigint;
    taken         bigint;
    exact         numeric;
    slot          integer;
    typed         boolean := false;
    limited       boolean := false;
begin
    select array_agg(b.account_id), array_agg(0::bigint), array_agg(0::bigint), array_agg(0::bigint)
      into purse_id, purse_paid, purse_held, purse_debt
      from (select b.account_id from balances b
             where b.account_id in (select h.account_id from holds h where h.request_id = any (p_request))
               and b.unit = 'credit'
             order by b.account_id for no key update) b;
    select coalesce(bool_or(h.quotas is not null), false), coalesce(bool_or(h.budget_ids is not null), false)
      into typed, limited from holds h where h.request_id = any (p_request);
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
          left join holds h on h.request_id = u.request_id
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
                        entry_unit := entry_unit || quota.key;
                        entry_grant := entry_grant || grant_id[slot];
                        entry_amount := entry_amount || -taken;
                    end if;
                    slot := slot + 1;
                end loop;
                if owing > 0 then
                    entry_member := entry_member || m.ord;
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

    update grants g set remaining = u.remaining, closed = (u.remaining = 0)
      from unnest(grant_id, grant_left, grant_touched) u (id, remaining, touched)
     where u.touched and g.id = u.id;
    update balances b set balance = b.balance - u.paid, held = b.held - u.held, debt = b.debt + u.debt
      from unnest(purse_id, purse_paid, purse_held, purse_debt) u (account_id, paid, held, debt)
     where b.account_id = u.account_id and b.unit = 'credit';
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
    select h.account_id, e.unit, e.grant_id, 'capture', e.amount, h.request_id, p_reason[e.member], 'call'
      from unnest(entry_member, entry_unit, entry_grant, entry_amount) e (member, unit, grant_id, amount)
      join holds h on h.request_id = p_request[e.member];
    if limited then
        update budgets b set held = b.held - s.held, spent = b.spent + s.spent
          from (select id, sum(h.amount)::bigint as held, sum(u.charged)::bigint as spent
                  from unnest(p_request, charged, result) u (request_id, charged, result)
                  join holds h on h.request_id = u.request_id, unnest(h.budget_ids) id
                 where u.result in ('capture', 'release')
                 group by id) s
         where b.id = s.id;
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
                       unpriced, attempts, exact_numerator, exact_denominator)
    select d.request_id, d.account_id, d.token_id, d.model, d.customer_group, d.created_at, d.amount,
           charged[d.ord], plan_paid[d.ord], indebted[d.ord], d.overage, used[d.ord]::jsonb,
           p_quotas[d.ord]::jsonb, p_channel[d.ord], p_outcome[d.ord], p_abort[d.ord], p_stream[d.ord],
           p_started[d.ord], p_duration[d.ord], p_first_byte[d.ord], p_cost[d.ord], p_meters[d.ord]::jsonb,
           p_raw[d.ord]::jsonb, documents[p_sell[d.ord]], documents[p_cost_side[d.ord]],
           p_unpriced[d.ord]::jsonb, p_attempts[d.ord]::jsonb, p_numerator[d.ord], p_denominator[d.ord]
      from done d;
    return query select u.* from unnest(result, charged) u (result, charged);
end $$;

revoke execute on function ledger_hold, ledger_settle from public;
grant execute on function ledger_hold, ledger_settle to relay_app;
