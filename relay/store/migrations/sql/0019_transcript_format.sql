-- What a channel's provider is asked for where a transcript is wanted as plain text. Empty: by the model.
alter table channels add column transcript_format text not null default '';
comment on column channels.transcript_format is 'what it is asked for in place of plain text: verbose_json, json or as_asked';
