-- The ledger's only writers. Each takes a batch, decides about every member by itself and never fails one for
-- another's sake. relay_app may call them and has no other way to change these tables.
--
-- Locks are taken in one order by all of them: balances by (account, unit), then budgets by id. An account's
-- balance row guards its grants and holds too: nobody changes those without it, so that what is read after it
-- was taken stays true until the commit. That is why each function reads in a later statement than it locks.

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

-- One grant under the account's lock. Its source id makes it happen once; an open debt is paid from it first.
create function ledger_add_grant(
    p_account bigint, p_unit text, p_amount bigint, p_source text, p_source_id text, p_priority integer,
    p_expires timestamptz, p_reason text, p_actor text
) returns grant_result language plpgsql as $$
declare
    made bigint;
    owed bigint;
    known grants;
begin
    select debt into owed from balances where account_id = p_account and unit = p_unit for no key update;
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
    update balances
       set balance = balance + p_amount, debt = debt - least(owed, p_amount),
           next_event_at = least(next_event_at, p_expires)
     where account_id = p_account and unit = p_unit;
    return row(made, 'made'::text);
end $$;

-- What time does to an account: expired grants lapse, the current period of each allowance is granted.
-- What open holds may still need does not lapse; the rest of it does when they are settled.
create function ledger_roll(p_account bigint) returns void language plpgsql as $$
declare
    purse balances;
    expired grants;
    allowance allowances;
    period tstzrange;
    lapsing bigint;
    next_event timestamptz;
begin
    perform from balances where account_id = p_account order by unit for no key update;
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
    for purse in select * from balances where account_id = p_account loop
        select min(expires_at) into next_event from grants
         where account_id = p_account and unit = purse.unit and not closed;
        select least(next_event, min(case when anchor > now() then anchor
                                          else upper(allowance_period(anchor, months, now())) end))
          into next_event from allowances
         where account_id = p_account and unit = purse.unit and (ends_at is null or ends_at > now());
        update balances set next_event_at = next_event
         where account_id = p_account and unit = purse.unit and next_event_at is distinct from next_event;
    end loop;
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

-- ------------------------------------------------------------------ hold
create function ledger_hold(
    p_request uuid[], p_attempt bigint[], p_account bigint[], p_token bigint[], p_amount bigint[],
    p_covered bigint[], p_model text[], p_group text[], p_expires timestamptz[],
    p_quota_member integer[], p_quota_unit text[], p_quota_amount bigint[]
) returns table (member integer, outcome text, missing bigint, quota_units text[], quota_amounts bigint[],
                 overage numeric)
language plpgsql security definer
set search_path = public, pg_temp set enable_seqscan = off set jit = off
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    slot_account bigint[];
    slot_unit    text[];
    slot_free    bigint[];
    due          bigint[];
    budget_id    bigint[];
    budget_scope text[];
    budget_of    bigint[];
    budget_free  bigint[];
    result       text[] := array_fill(null::text, array[cardinality(p_request)]);
    short        bigint[] := array_fill(null::bigint, array[cardinality(p_request)]);
    amount       bigint[] := p_amount;
    part_member  integer[] := '{}';
    part_slot    integer[] := '{}';
    part_amount  bigint[] := '{}';
    bound_member integer[] := '{}';
    bound_budget bigint[] := '{}';
    m            record;
    need         bigint;
    slot         integer;
    wanted       bigint;
    taken        bigint;
    covered      boolean;
    i            integer;
begin
    for attempt in 1..2 loop
        select array_agg(b.account_id), array_agg(b.unit), array_agg(b.free),
               array_agg(distinct b.account_id) filter (where b.next_event_at <= now())
          into slot_account, slot_unit, slot_free, due
          from (select b.account_id, b.unit, b.next_event_at,
                       b.balance - b.held + case b.unit when 'credit' then a.credit_limit else 0 end as free
                  from balances b join accounts a on a.id = b.account_id
                 where b.account_id = any (p_account)
                 order by b.account_id, b.unit for no key update of b) b;
        exit when due is null or attempt = 2;
        perform ledger_roll(account) from unnest(due) account;
    end loop;

    for attempt in 1..2 loop
        select array_agg(b.id), array_agg(b.scope), array_agg(b.scope_id),
               array_agg(b.maximum - b.spent - b.held), coalesce(bool_or(b.period_ends <= now()), false)
          into budget_id, budget_scope, budget_of, budget_free, covered
          from (select * from budgets
                 where (scope = 'token' and scope_id = any (p_token))
                    or (scope = 'account' and scope_id = any (p_account))
                    or (scope = 'global' and scope_id = 0)
                 order by id for no key update) b;
        exit when not covered or attempt = 2;
        update budgets set spent = 0, period_ends = budget_period_end(period, now())
         where id = any (budget_id) and period_ends <= now();
    end loop;

    for m in
        select u.ord::integer as ord, u.attempt, u.amount, u.covered, h.attempt as known, h.state,
               s.slot, a.status, a.overage_multiplier as overage,
               case when cardinality(p_quota_member) > 0 then
                   (select array_agg(t.slot::integer order by q.n) from
                        unnest(p_quota_member, p_quota_unit) with ordinality q (member, unit, n)
                        left join unnest(slot_account, slot_unit) with ordinality t (account_id, unit, slot)
                            on t.account_id = u.account_id and t.unit = q.unit
                     where q.member = u.ord)
               end as quota_slots,
               case when cardinality(p_quota_member) > 0 then
                   (select array_agg(q.amount order by q.n) from
                        unnest(p_quota_member, p_quota_amount) with ordinality q (member, amount, n)
                     where q.member = u.ord)
               end as quota_wanted,
               case when budget_id is not null then
                   (select array_agg(b.n::integer order by b.n) from
                        unnest(budget_scope, budget_of) with ordinality b (scope, scope_id, n)
                     where b.scope = 'global' or (b.scope = 'account' and b.scope_id = u.account_id)
                        or (b.scope = 'token' and b.scope_id = u.token_id))
               end as budgets
          from unnest(p_request, p_attempt, p_account, p_token, p_amount, p_covered) with ordinality
                   u (request_id, attempt, account_id, token_id, amount, covered, ord)
          left join unnest(slot_account, slot_unit) with ordinality s (account_id, unit, slot)
               on s.account_id = u.account_id and s.unit = 'credit'
          left join accounts a on a.id = u.account_id
          left join holds h on h.request_id = u.request_id
         order by u.ord
    loop
        if m.known is not null then
            result[m.ord] := case when m.known <> m.attempt then 'duplicate'
                                  when m.state <> 'held' then 'ended' else 'held' end;
            continue;
        end if;
        if m.slot is null or m.status <> 'active' then
            result[m.ord] := 'inactive';
            continue;
        end if;
        -- Typed quotas are used before credit. What they do not cover in full is held in credit as a whole.
        covered := m.quota_slots is not null;
        for i in 1..coalesce(cardinality(m.quota_slots), 0) loop
            covered := covered and coalesce(slot_free[m.quota_slots[i]], 0) >= m.quota_wanted[i];
        end loop;
        need := case when covered then m.covered else m.amount end;
        if m.overage > 1 then
            need := ceil(need * m.overage);
        end if;
        if need > 0 and slot_free[m.slot] < need then
            result[m.ord] := 'credit';
            short[m.ord] := need - slot_free[m.slot];
            continue;
        end if;
        for i in 1..coalesce(cardinality(m.budgets), 0) loop
            if need > 0 and budget_free[m.budgets[i]] < need then
                result[m.ord] := 'budget:' || budget_scope[m.budgets[i]];
                short[m.ord] := need - budget_free[m.budgets[i]];
            end if;
        end loop;
        continue when result[m.ord] is not null;

        result[m.ord] := 'held';
        amount[m.ord] := need;
        slot_free[m.slot] := slot_free[m.slot] - need;
        for i in 1..coalesce(cardinality(m.quota_slots), 0) loop
            slot := m.quota_slots[i];
            taken := least(greatest(slot_free[slot], 0), m.quota_wanted[i]);
            if taken > 0 then
                slot_free[slot] := slot_free[slot] - taken;
                part_member := part_member || m.ord;
                part_slot := part_slot || slot;
                part_amount := part_amount || taken;
            end if;
        end loop;
        for i in 1..coalesce(cardinality(m.budgets), 0) loop
            slot := m.budgets[i];
            budget_free[slot] := budget_free[slot] - need;
            bound_member := bound_member || m.ord;
            bound_budget := bound_budget || budget_id[slot];
        end loop;
    end loop;

    return query
    with asked as (
        select u.*, part.units, part.amounts, bound.ids, a.overage_multiplier
          from unnest(p_request, p_attempt, p_account, p_token, amount, p_model, p_group, p_expires, result, short)
                   with ordinality u (request_id, attempt, account_id, token_id, amount, model, customer_group,
                                      expires_at, result, short, ord)
          left join accounts a on a.id = u.account_id
          left join (select p.member, array_agg(slot_unit[p.slot]) as units, array_agg(p.amount) as amounts
                       from unnest(part_member, part_slot, part_amount) p (member, slot, amount)
                      group by p.member) part on part.member = u.ord
          left join (select b.member, array_agg(b.id) as ids
                       from unnest(bound_member, bound_budget) b (member, id)
                      group by b.member) bound on bound.member = u.ord
    ), made as (
        insert into holds as h (request_id, attempt, account_id, token_id, amount, model, customer_group,
                                expires_at, quota_units, quota_amounts, budget_ids, overage)
        select request_id, attempt, account_id, token_id, amount, model, customer_group, expires_at,
               units, amounts, ids, overage_multiplier
          from asked where result = 'held'
         order by request_id
        on conflict (request_id) do nothing
        returning h.request_id, h.account_id, h.amount, h.quota_units, h.quota_amounts, h.budget_ids, h.overage
    ), balances_held as (
        update balances b set held = b.held + s.total
          from (select account_id, unit, sum(amount)::bigint as total
                  from (select account_id, 'credit' as unit, amount from made
                        union all
                        select made.account_id, q.unit, q.amount
                          from made, unnest(made.quota_units, made.quota_amounts) q (unit, amount)) legs
                 group by account_id, unit) s
         where b.account_id = s.account_id and b.unit = s.unit
    ), budgets_held as (
        update budgets b set held = b.held + s.total
          from (select id, sum(made.amount)::bigint as total from made, unnest(made.budget_ids) id group by id) s
         where b.id = s.id
    )
    select asked.ord::integer,
           case when asked.result = 'held' and made.request_id is null and h.request_id is null then 'duplicate'
                else asked.result end,
           asked.short, coalesce(made.quota_units, h.quota_units), coalesce(made.quota_amounts, h.quota_amounts),
           coalesce(made.overage, h.overage)
      from asked
      left join made on made.request_id = asked.request_id
      left join holds h on asked.result = 'held' and h.request_id = asked.request_id
                       and h.attempt = asked.attempt
     order by asked.ord;
end $$;

-- ------------------------------------------------------------------ settle: capture or release
-- p_list: the charge in n$; p_over: the same by the overage multiplier alone. The exact fraction, quantum and
-- minimum serve the one call that a plan period pays in part: what it pays + the rest times the multiplier.
create function ledger_settle(
    p_request uuid[], p_release boolean[], p_list bigint[], p_over bigint[], p_numerator numeric[],
    p_denominator numeric[], p_quantum bigint[], p_minimum bigint[], p_reason text[],
    p_quota_member integer[], p_quota_unit text[], p_quota_amount bigint[],
    p_channel bigint[], p_outcome text[], p_abort text[], p_stream boolean[], p_started timestamptz[],
    p_duration bigint[], p_first_byte bigint[], p_cost bigint[], p_meters text[], p_raw text[], p_sell text[],
    p_cost_side text[], p_unpriced text[], p_attempts text[]
) returns table (member integer, outcome text, charge bigint)
language plpgsql security definer
set search_path = public, pg_temp set enable_seqscan = off set jit = off
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    grant_id      bigint[];
    grant_account bigint[];
    grant_unit    text[];
    grant_left    bigint[];
    grant_plan    boolean[];
    result        text[] := array_fill(null::text, array[cardinality(p_request)]);
    charged       bigint[] := array_fill(0::bigint, array[cardinality(p_request)]);
    plan_paid     bigint[] := array_fill(0::bigint, array[cardinality(p_request)]);
    indebted      bigint[] := array_fill(0::bigint, array[cardinality(p_request)]);
    entry_member  integer[] := '{}';
    entry_unit    text[] := '{}';
    entry_grant   bigint[] := '{}';
    entry_amount  bigint[] := '{}';
    m             record;
    owing         bigint;
    taken         bigint;
    exact         numeric;
    unit          text;
    leg           integer;
    slot          integer;
begin
    perform from (
        select from balances b
         where b.account_id in (select h.account_id from holds h where h.request_id = any (p_request))
         order by b.account_id, b.unit for no key update) locked;
    perform from (
        select from budgets b
         where b.id in (select unnest(h.budget_ids) from holds h where h.request_id = any (p_request))
         order by b.id for no key update) locked;

    select array_agg(g.id), array_agg(g.account_id), array_agg(g.unit), array_agg(g.remaining), array_agg(g.plan)
      into grant_id, grant_account, grant_unit, grant_left, grant_plan
      from (select g.id, g.account_id, g.unit, g.remaining, g.source = 'plan_period' as plan
              from grants g
             where not g.closed
               and g.account_id in (select h.account_id from holds h where h.request_id = any (p_request))
             order by g.account_id, g.unit, (g.source = 'plan_period') desc, g.priority, g.expires_at, g.id) g;

    for m in
        select u.ord::integer as ord, h.account_id, h.state, h.charge, h.overage, credit.first, credit.last,
               case when cardinality(p_quota_member) > 0 then
                   (select array_agg(q.n::integer order by q.n)
                      from unnest(p_quota_member) with ordinality q (member, n) where q.member = u.ord)
               end as legs
          from unnest(p_request) with ordinality u (request_id, ord)
          left join holds h on h.request_id = u.request_id
          left join (select g.account_id, min(g.slot)::integer as first, max(g.slot)::integer as last
                       from unnest(grant_account, grant_unit) with ordinality g (account_id, unit, slot)
                      where g.unit = 'credit' group by g.account_id) credit on credit.account_id = h.account_id
         order by u.ord
    loop
        if m.state is null then
            result[m.ord] := 'unknown';
        elsif m.state <> 'held' then
            result[m.ord] := m.state;
            charged[m.ord] := coalesce(m.charge, 0);
        elsif p_release[m.ord] then
            result[m.ord] := 'release';
        end if;
        continue when result[m.ord] is not null;

        result[m.ord] := 'capture';
        owing := p_list[m.ord];
        if m.overage <> 1 then
            taken := 0;
            for slot in coalesce(m.first, 1)..coalesce(m.last, 0) loop
                taken := taken + case when grant_plan[slot] then grant_left[slot] else 0 end;
            end loop;
            plan_paid[m.ord] := least(taken, owing);
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
        for slot in coalesce(m.first, 1)..coalesce(m.last, 0) loop
            exit when owing = 0;
            taken := least(grant_left[slot], owing);
            if taken > 0 then
                grant_left[slot] := grant_left[slot] - taken;
                owing := owing - taken;
                entry_member := entry_member || m.ord;
                entry_unit := entry_unit || 'credit'::text;
                entry_grant := entry_grant || grant_id[slot];
                entry_amount := entry_amount || -taken;
            end if;
        end loop;
        if owing > 0 then
            indebted[m.ord] := owing;
            entry_member := entry_member || m.ord;
            entry_unit := entry_unit || 'credit'::text;
            entry_grant := entry_grant || null::bigint;
            entry_amount := entry_amount || -owing;
        end if;
        -- Typed units: never more than the hold reserved, so that an open grant is always left to take them from.
        if m.legs is not null then
            foreach leg in array m.legs loop
                owing := p_quota_amount[leg];
                unit := p_quota_unit[leg];
                for slot in 1..coalesce(cardinality(grant_id), 0) loop
                    exit when owing = 0;
                    continue when grant_account[slot] <> m.account_id or grant_unit[slot] <> unit;
                    taken := least(grant_left[slot], owing);
                    if taken > 0 then
                        grant_left[slot] := grant_left[slot] - taken;
                        owing := owing - taken;
                        entry_member := entry_member || m.ord;
                        entry_unit := entry_unit || unit;
                        entry_grant := entry_grant || grant_id[slot];
                        entry_amount := entry_amount || -taken;
                    end if;
                end loop;
                if owing > 0 then
                    entry_member := entry_member || m.ord;
                    entry_unit := entry_unit || unit;
                    entry_grant := entry_grant || null::bigint;
                    entry_amount := entry_amount || -owing;
                end if;
            end loop;
        end if;
    end loop;

    update grants g set remaining = n.remaining, closed = (n.remaining = 0)
      from unnest(grant_id, grant_left) n (id, remaining)
     where g.id = n.id and g.remaining <> n.remaining;

    return query
    with done as (
        update holds h
           set state = case d.result when 'capture' then 'captured' else 'released' end,
               charge = d.charged, settled_at = now(), reason = d.reason
          from unnest(p_request, result, charged, p_reason) with ordinality
                   d (request_id, result, charged, reason, ord)
         where h.request_id = d.request_id and d.result in ('capture', 'release')
        returning h.request_id, h.account_id, h.token_id, h.amount, h.quota_units, h.quota_amounts, h.budget_ids,
                  h.model, h.customer_group, h.created_at, h.overage, h.reason, d.ord, d.charged
    ), paid as (
        insert into entries as e (account_id, unit, grant_id, kind, amount, request_id, reason, source)
        select done.account_id, e.unit, e.grant_id, 'capture', e.amount, done.request_id, done.reason, 'call'
          from unnest(entry_member, entry_unit, entry_grant, entry_amount) e (member, unit, grant_id, amount)
          join done on done.ord = e.member
        returning e.account_id, e.unit, e.grant_id, e.amount, e.request_id
    ), purses as (
        update balances b
           set balance = b.balance + s.amount, held = b.held - s.held, debt = b.debt + s.debt
          from (select account_id, unit, sum(amount)::bigint as amount, sum(held)::bigint as held,
                       sum(debt)::bigint as debt
                  from (select account_id, unit, amount, 0 as held,
                               case when grant_id is null then -amount else 0 end as debt
                          from paid
                        union all
                        select account_id, 'credit', 0, amount, 0 from done
                        union all
                        select done.account_id, q.unit, 0, q.amount, 0
                          from done, unnest(done.quota_units, done.quota_amounts) q (unit, amount)) legs
                 group by account_id, unit) s
         where b.account_id = s.account_id and b.unit = s.unit
    ), limits as (
        update budgets b set held = b.held - s.held, spent = b.spent + s.spent
          from (select id, sum(done.amount)::bigint as held, sum(done.charged)::bigint as spent
                  from done, unnest(done.budget_ids) id group by id) s
         where b.id = s.id
    ), recorded as (
        insert into usage (request_id, account_id, token_id, model, customer_group, admitted_at, held, charge,
                           plan_paid, debt, overage, grants_used, quotas_used, channel_id, outcome, abort_rule,
                           stream, started_at, duration_ms, first_byte_ms, cost, meters, raw_usage, sell,
                           cost_side, unpriced, attempts, exact_numerator, exact_denominator)
        select done.request_id, done.account_id, done.token_id, done.model, done.customer_group, done.created_at,
               done.amount, done.charged, plan_paid[done.ord], indebted[done.ord], done.overage,
               used.grants, used.quotas, p_channel[done.ord], p_outcome[done.ord], p_abort[done.ord],
               p_stream[done.ord], p_started[done.ord], p_duration[done.ord], p_first_byte[done.ord],
               p_cost[done.ord], p_meters[done.ord]::jsonb, p_raw[done.ord]::jsonb, p_sell[done.ord]::jsonb,
               p_cost_side[done.ord]::jsonb, p_unpriced[done.ord]::jsonb, p_attempts[done.ord]::jsonb,
               p_numerator[done.ord], p_denominator[done.ord]
          from done
          left join (select request_id,
                            jsonb_object_agg(grant_id, -amount)
                                filter (where grant_id is not null and unit = 'credit') as grants,
                            jsonb_object_agg(unit || ':' || coalesce(grant_id::text, 'debt'), -amount)
                                filter (where unit <> 'credit') as quotas
                       from paid group by request_id) used on used.request_id = done.request_id
    )
    select r.ord::integer, r.result, r.charged
      from unnest(result, charged) with ordinality r (result, charged, ord) order by r.ord;
end $$;

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
    perform from balances where account_id = wrong.account_id order by unit for no key update;
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
revoke execute on function ledger_grant, ledger_add_grant, ledger_roll, ledger_hold, ledger_settle, ledger_reverse
    from public;
grant execute on function ledger_grant, ledger_hold, ledger_settle, ledger_reverse to relay_app;
