-- What monitoring asks at each scrape: budgets of everybody and of accounts of which little is left. A customer
-- looks after those of its tokens.
create view budget_use as
select scope, scope_id, period, (spent + held)::double precision / maximum as used_ratio
from budgets
where scope in ('global', 'account')
  and maximum > 0
  and spent + held >= 0.8 * maximum
  and (period_ends is null or period_ends > now());

do $$
begin
    if exists (select from pg_roles where rolname = 'relay_exporter') then
        grant select on budget_use to relay_exporter;
    end if;
end $$;
