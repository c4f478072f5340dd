-- What a channel's provider takes of a request. Empty: as the fleet's setting, or the provider's profile, says.
alter table channels
    add column unknown_fields text not null default '',
    add column output_limit_field text not null default '';
comment on column channels.unknown_fields is 'request fields that the relay does not know: pass, drop or refuse';
comment on column channels.output_limit_field is 'its name for the most tokens of an answer';
