create table if not exists meta (key text primary key, value integer not null) strict;

create table if not exists buffer (
  number   integer primary key,
  id       text not null unique,
  name     text not null unique,
  terms    text not null,               -- JSON
  paused   text,                        -- why, if it is
  created  integer not null,
  next_seq integer not null default 1   -- gap-free, also after items are removed
) strict;

create table if not exists item (
  place      integer primary key,
  id         text not null unique,
  buffer     integer not null references buffer,
  born       integer not null,          -- the place it was pushed at
  seq        integer not null,
  status     integer not null,          -- position in Status::ALL; below 3 something is to happen
  request    text not null,             -- JSON
  large      integer not null,          -- its body is in a file of its own
  crc        integer not null,          -- over id, request and body
  size       integer not null,
  kept       integer not null,
  not_before integer not null,
  expires    integer,
  attempts   integer not null default 0,
  retries    integer not null default 0,
  doubtful   integer not null default 0,-- it may have been sent without our knowing the outcome
  finished   integer,
  code       integer,
  error      text,
  unique (buffer, seq)
) strict;
-- Beside its item, which changes with every attempt and should be small to write.
create table if not exists body (place integer primary key, body blob not null) strict;
create index if not exists live on item (buffer, seq) where status < 3;
create index if not exists parked on item (buffer, not_before) where status < 2;
create index if not exists by_status on item (buffer, status, seq);
create index if not exists over on item (status, finished) where status > 2;

create table if not exists attempt (
  place    integer primary key,
  item     text not null,
  buffer   integer not null,
  number   integer not null,
  started  integer not null,
  took     integer not null,
  waited   integer not null,
  outcome  text not null,
  code     integer,
  error    text,
  next     integer,
  doubtful integer not null,
  headers  text,                        -- JSON, of the response
  body     blob,
  cut      integer not null default 0
) strict;
create index if not exists attempt_of on attempt (item, place);
create index if not exists attempt_in on attempt (buffer, place);
create index if not exists attempt_code on attempt (code, place);
create index if not exists attempt_outcome on attempt (outcome, place);

create table if not exists once (
  key         text primary key,
  fingerprint blob not null,
  items       text not null,            -- JSON: ids and places
  made        integer not null
) strict, without rowid;
