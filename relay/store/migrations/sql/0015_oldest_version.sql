-- Which versions of the relay this schema serves: a migration that takes away what they use raises it.

create table schema_support (
    only_row       boolean primary key default true check (only_row),
    oldest_version text not null
);
comment on column schema_support.oldest_version is
    'the newest revision that the oldest version of the relay knows which may still serve';
insert into schema_support (oldest_version) values ('0009_partition_rights');

revoke insert, update, delete on schema_support from relay_app;
grant select on schema_support to relay_app;
