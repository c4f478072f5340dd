-- What a channel speaks, apart from whose bill it is: `provider` names the company, `format` its API.
alter table channels add column format text not null default 'openai';
comment on column channels.provider is 'whose bill: cost prices, statistics and metrics go by it';
comment on column channels.format is 'the API that its base URL speaks';
comment on column price_versions.provider is 'cost prices: a channel''s name, a provider, or empty for all';
