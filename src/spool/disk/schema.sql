create table if not exists meta (key text primary key, value integer not null) strict;

create table if not exists buffer (
  number   integer primary key,
  id       text not null unique,
  name     text not null unique,
  terms    text not null,               -- JSON
  paused   text,                        -- reason of the pause, or null
  created  integer not null,
  next_seq integer not null default 1   -- next item.seq, not lowered after a removal
) strict;

create table if not exists item (
  place      integer primary key,
  id         text not null unique,
  buffer     integer not null references buffer,
  born       integer not null,          -- first value of seq, before any redrive
  seq        integer not null,
  status     integer not null,          -- index in ItemStatus::ALL, below 3 if live
  request    text not null,             -- JSON
  large      integer not null,          -- 1 if the body is in its own file
  crc        integer not null,          -- CRC-32 of id, request and body
  size       integer not null,
  kept       integer not null,
  not_before integer not null,
  expires    integer,
  attempts   integer not null default 0,
  retries    integer not null default 0,
  refusals   integer not null default 0,
  doubtful   integer not null default 0,-- 1 if the origin may have received it already
  finished   integer,
  code       integer,
  error      text,
  owner      text not null default '',  -- client that pushed it, or empty
  counted    integer not null default 0,-- bytes that it counts for, with its attempts
  unique (buffer, seq)
) strict;
-- Bodies are apart from their items, because each attempt rewrites the item's row.
create table if not exists body (place integer primary key, body blob not null) strict;
create index if not exists live on item (buffer, seq) where status < 3;
create index if not exists parked on item (buffer, not_before) where status < 2;
create index if not exists by_status on item (buffer, status, seq);
create index if not exists over on item (status, finished) where status > 2;

-- Sums of the items of each client, changed in the same transaction as the items. The sum of the body
-- files is the row `files` of meta.
create table if not exists usage (
  owner text primary key,
  items integer not null,
  bytes integer not null
) strict, without rowid;

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
  headers  text,                        -- JSON, header fields of the response
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
  items       text not null,            -- JSON, id and seq of each item
  made        integer not null
) strict, without rowid;

-- Keys that may have sealed items or buffers. Empty in a file of an earlier version.
create table if not exists seal_key (id text primary key) strict, without rowid;
