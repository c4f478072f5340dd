-- What monitoring asks at each scrape: open holds only, which a partial index finds. Sums over the ledger are
-- the audits' work, whose results the relay exports.
create view ledger_health as
select coalesce(extract(epoch from now() - min(created_at)), 0)::double precision as hold_oldest_seconds,
       count(*) as unsettled_holds
from holds where state = 'held';

do $$
begin
    if exists (select from pg_roles where rolname = 'relay_exporter') then
        grant select on ledger_health to relay_exporter;
    end if;
end $$;
