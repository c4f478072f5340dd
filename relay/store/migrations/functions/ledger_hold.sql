-- Holds of many calls in one statement. Each member is decided by itself, in its order of arrival, and never fails
-- another: refusals are results, not exceptions.
--
-- Members are visited account by account, beside the locked rows in the same order: sorted lists instead of joins
-- between arrays, which the planner takes for ten rows each and would join in squares. Rows of tables are found by
-- their keys alone: a session's plan that was made while a table was small must not read all of it once it has grown.
--
-- p_quotas: {unit: quantity} a member, or null. p_covered: what to hold if they are reserved in full.
create or replace function ledger_hold(
    p_request uuid[], p_attempt bigint[], p_account bigint[], p_token bigint[], p_amount bigint[],
    p_covered bigint[], p_model text[], p_group text[], p_expires timestamptz[], p_quotas text[]
) returns table (outcome text, missing bigint, quotas text, overage text)
language plpgsql security definer
set search_path = public, pg_temp set jit = off set plan_cache_mode = force_generic_plan
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    members      integer := cardinality(p_request);
    -- of each member, by its place; those without a first value are null where a member has none
    result       text[] := array_fill(null::text, array[members]);
    short        bigint[];
    amount       bigint[] := p_amount;
    reserved     text[];
    bound        text[];
    factor       numeric[];
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
    -- tokens whose breaker is open, and the outcome that says until when, what was spent and the maximum
    broken_id    bigint[];
    broken_says  text[];
    known        boolean;
    due          bigint[];
    lapsed       boolean;
    m            record;
    quota        record;
    earlier      record;
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

    select array_agg(b.token_id),
           array_agg('breaker:' || extract(epoch from b.hour + interval '1 hour')::bigint
                     || ':' || b.spent || ':' || b.maximum),
           exists (select from holds h where h.request_id = any (p_request))
      into broken_id, broken_says, known
      from spend_breakers b
     where b.token_id = any (p_token) and b.hour >= date_trunc('hour', now(), 'UTC')
       and b.spent - b.lifted >= b.maximum;

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
            select h.attempt, h.state, h.quotas::text as quotas, h.overage into earlier
              from holds h where h.request_id = m.request_id;
            if found then
                result[m.ord] := case when earlier.attempt <> m.attempt then 'duplicate'
                                      when earlier.state <> 'held' then 'ended' else 'known' end;
                reserved[m.ord] := earlier.quotas;
                factor[m.ord] := earlier.overage;
                continue;
            end if;
        end if;
        if purse = 0 or purse_id[purse] <> account or not purse_active[purse] then
            result[m.ord] := 'inactive';
            continue;
        end if;

        if m.token_id = any (broken_id) then
            result[m.ord] := broken_says[array_position(broken_id, m.token_id)];
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
        if budget_id is not null then
            refused := null;
            for slot in 1..cardinality(budget_id) loop
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
        if budget_id is not null then
            for slot in 1..cardinality(budget_id) loop
                if budget_scope[slot] = 'global' or budget_scope[slot] = 'account' and budget_of[slot] = account
                   or budget_scope[slot] = 'token' and budget_of[slot] = m.token_id then
                    budget_free[slot] := budget_free[slot] - need;
                    budget_taken[slot] := budget_taken[slot] + need;
                    bound[m.ord] := coalesce(bound[m.ord] || ',', '{') || budget_id[slot];
                end if;
            end loop;
            bound[m.ord] := bound[m.ord] || '}';
        end if;
    end loop;

    with made as (
        insert into holds (request_id, attempt, account_id, token_id, amount, model, customer_group, expires_at,
                           quotas, budget_ids, overage)
        select u.request_id, u.attempt, u.account_id, u.token_id, u.amount, u.model, u.customer_group,
               u.expires_at, reserved[u.ord]::jsonb, bound[u.ord]::bigint[], factor[u.ord]
          from unnest(p_request, p_attempt, p_account, p_token, amount, p_model, p_group, p_expires, result)
                   with ordinality
                   u (request_id, attempt, account_id, token_id, amount, model, customer_group, expires_at,
                      result, ord)
         where u.result = 'held'
         order by u.request_id
        on conflict (request_id) do nothing
        returning request_id)
    select array_agg(request_id) into written from made;
    if written is null then
        -- Even an answer that changes nothing is confirmed by the standby: a primary that was replaced without
        -- knowing it cannot answer, neither that it knows no such hold nor that it has written one.
        perform pg_logical_emit_message(true, 'ledger', '');
    end if;

    -- Another session wrote the same request id in this very moment: that member takes back what it took.
    if coalesce(cardinality(written), 0) < cardinality(array_positions(result, 'held')) then
        for m in
            select u.*, reserved[u.ord] as quotas, bound[u.ord] as budgets
              from unnest(p_request, p_account, amount, result)
                   with ordinality u (request_id, account_id, amount, result, ord)
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

    update balances b set held = b.held + purse_taken[array_position(purse_id, b.account_id)]
     where b.account_id = any (purse_id) and b.unit = 'credit'
       and purse_taken[array_position(purse_id, b.account_id)] <> 0;
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
        select case when u.result = 'known' then 'held' else u.result end, short[u.ord], reserved[u.ord],
               factor[u.ord]::text
          from unnest(result) with ordinality u (result, ord);
end $$;
