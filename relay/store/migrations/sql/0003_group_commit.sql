-- Holds and settlements of many calls in one statement: see functions/.

drop function if exists ledger_hold(uuid[], bigint[], bigint[], bigint[], bigint[], bigint[], text[], text[],
    timestamptz[], integer[], text[], bigint[]);
drop function if exists ledger_settle(uuid[], boolean[], bigint[], bigint[], numeric[], numeric[], bigint[],
    bigint[], text[], integer[], text[], bigint[], bigint[], text[], text[], boolean[], timestamptz[], bigint[],
    bigint[], bigint[], text[], text[], text[], text[], text[], text[]);
alter table holds drop column quota_units, drop column quota_amounts, add column quotas jsonb;
comment on column holds.quotas is 'typed units that are reserved, {unit: quantity}';
