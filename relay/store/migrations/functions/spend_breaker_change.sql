-- Sets, lifts or takes away a token's breaker, and writes down who did it and why. Outcomes: made, no_token, none
-- (it has no breaker), closed (it refuses nothing).
create or replace function spend_breaker_change(
    p_token bigint, p_kind text, p_maximum bigint, p_reason text, p_actor text
) returns text language plpgsql security definer set search_path = public, pg_temp as $$
declare
    this_hour timestamptz := date_trunc('hour', now(), 'UTC');
    owner     bigint;
    breaker   spend_breakers;
begin
    select t.account_id into owner from tokens t where t.id = p_token;
    if not found then
        return 'no_token';
    end if;
    -- The lock that settlements take: what has been charged so far stays true until the commit.
    perform from balances b where b.account_id = owner and b.unit = 'credit' for no key update;
    update spend_breakers b set hour = this_hour, spent = 0, lifted = 0
     where b.token_id = p_token and b.hour < this_hour;
    select * into breaker from spend_breakers b where b.token_id = p_token;
    if p_kind = 'set' then
        insert into spend_breakers as b (token_id, maximum, hour, spent)
        select p_token, p_maximum, this_hour, coalesce(sum(u.charge), 0)
          from usage u
         where u.account_id = owner and u.token_id = p_token and u.settled_at >= this_hour
        on conflict (token_id) do update set maximum = excluded.maximum
        returning b.* into breaker;
    elsif breaker.token_id is null then
        return 'none';
    elsif p_kind = 'clear' then
        delete from spend_breakers b where b.token_id = p_token;
    elsif breaker.spent - breaker.lifted < breaker.maximum then
        return 'closed';
    else
        update spend_breakers b set lifted = b.spent where b.token_id = p_token;
    end if;
    insert into spend_breaker_changes (token_id, kind, maximum, spent, reason, actor)
    values (p_token, p_kind, breaker.maximum, breaker.spent, p_reason, p_actor);
    return 'made';
end $$;
