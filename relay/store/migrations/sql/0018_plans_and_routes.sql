-- Plans: what each of their accounts may use, beside the account's own limits; null: no limit.
insert into revisions (topic) values ('plans');
create table plans (
    id           bigint generated always as identity primary key,
    name         text not null unique check (length(name) between 1 and 64),
    rpm          bigint check (rpm > 0),
    tpm          bigint check (tpm > 0),
    concurrency  bigint check (concurrency > 0),
    model_limits jsonb,
    created_at   timestamptz not null default now()
);
comment on table plans is 'the stricter of an account''s limits and its plan''s holds';
comment on column plans.model_limits is '{model: {rpm, tpm, concurrency}}: of single models, beside the rest';
create trigger plans_announce after insert or update or delete on plans
    for each row execute function announce_change('plans');
alter table accounts add column plan_id bigint;

alter table channels add column tpm bigint;
comment on column channels.tpm is 'tokens a minute that the relays send it at most; none: no limit';

-- How one of the channels that serve a model is chosen; a model without a row goes by that of "*".
create table routes (
    id         bigint generated always as identity primary key,
    model      text not null unique check (length(model) between 1 and 200),
    sticky     text not null default 'off' check (sticky in ('off', 'session', 'prefix')),
    prefer     text not null default 'weight' check (prefer in ('weight', 'latency')),
    created_at timestamptz not null default now()
);
comment on column routes.sticky is 'which calls of a customer go to the same channel: those of a session, those that begin alike';
comment on column routes.prefer is 'what decides where sticky does not';
create trigger routes_announce after insert or update or delete on routes
    for each row execute function announce_change('channels');

grant select, insert, update, delete on plans, routes to relay_app;
