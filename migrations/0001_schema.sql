-- Tables and types of the shared ledger and the shared spool. The functions are in the folder 0001,
-- and all these files together are migration 1. It may be edited until 0.2.0 is tagged.
--
-- The ledger has one schedule per limit and key for all replicas. Its instants and durations are
-- integers in nanoseconds of this server's clock. docs/ledger.md and docs/spool.md explain the rows.
--
-- Functions carry a version in their names, and a program calls the versions that it was written
-- for. So old and new programs run side by side during a rollout.

create schema if not exists outpace;

-- The range of programs that this schema serves, from number `oldest` to number `newest`.
create table outpace.schema_info (
  single bool primary key default true check (single),
  oldest int  not null,
  newest int  not null
);
insert into outpace.schema_info (oldest, newest) values (1, 2);

-- Ledger

-- One row per target, with the block of its origin. The latest instant is stored, so that time
-- never goes back.
create table outpace.target (
  name       text primary key,
  clock_ns   int8 not null default 0,
  epoch      int8 not null default 0,       -- number of blocks so far
  cleared    jsonb not null default '{}',   -- times that an operator had settlements forgotten, by
                                            -- limit
  blocks     int8 not null default 0,       -- changes of the blocks of its parts
  lifted_ns  int8 not null default 0,       -- last time that an operator lifted blocks
  blocked_ns int8 not null default 0,       -- end of the last block
  phase      int2 not null default 0,       -- 0 open, 1 blocked, 2 probing
  rest_ns    int8 not null default 0,       -- end of the wait for an unanswered probe
  server_ns  int8 not null default 0,       -- start of the server that wrote this row
  quiet_ns   int8 not null default 0        -- end of the quiet time after a server start
) with (fillfactor = 20);

-- One row per block of a part of a target: a limit, a key of a limit, or a credential. An empty text
-- stands for a part that the scope lacks. At most 10,000 rows per target.
create table outpace.block (
  target     text not null,
  limit_name text not null,
  key        text not null,
  credential text not null,                  -- digest
  since_ns   int8 not null,
  until_ns   int8 not null,                  -- a probe may leave from then on
  asked_ns   int8 not null,                  -- end that the origin asked for, or 0 for none
  rest_ns    int8 not null default 0,        -- end of the wait for an unanswered probe
  longer     bool not null,                  -- the origin asked for more than `block_max`
  status     int  not null,
  field      text not null,                  -- the origin's words
  value      text not null,
  path       text not null,
  primary key (target, limit_name, key, credential)
);

-- One row per limit, or per key of a keyed limit. A kind leaves the numbers of the others at 0.
create table outpace.schedule (
  target       text   not null,
  limit_name   text   not null,
  key          text   not null default '',
  kind         text   not null,              -- token, sliding, fixed or permits
  n            int8   not null default 0,    -- windows: units per period; permits: maximum
  period_ns    int8   not null default 0,    -- length of the period or window
  interval_ns  int8   not null default 0,    -- token: time per unit
  tolerance_ns int8   not null default 0,    -- token: burst tolerance
  guard_ns     int8   not null default 0,    -- fixed: time kept free at both edges of a window
  mark         int8   not null default 0,    -- token: theoretical arrival time, fixed: newest window,
                                             -- sliding: last settlement above its estimate
  used         int8   not null default 0,    -- fixed: units used in the newest window, sliding: units
                                             -- that settlements added, token: theoretical arrival
                                             -- time if only the known costs were used
  log_at       int8[] not null default '{}', -- sliding: instants, ascending, token: instants at which
                                             -- the origin's bucket may have been full
  log_units    int8[] not null default '{}', -- sliding: units sent at these instants, token: the
                                             -- theoretical arrival times that follow from them
  reserves     int8[] not null default '{}', -- by lane: instant up to which its reserve is used
  agreed_ns    int8   not null default 0,    -- last call under these numbers
  settled      int8   not null default 0,    -- part of mark or used that settlements added
  primary key (target, limit_name, key)
) with (fillfactor = 20);

-- Number of keys of each limit that have a schedule of their own. Further keys share the schedule
-- with the key `overflow keys`, because the alphabet of keys has no blank.
create table outpace.key_count (
  target     text not null,
  limit_name text not null,
  live       int8 not null,
  primary key (target, limit_name)
) with (fillfactor = 20);

-- One row per flow, which is one lane of one replica that competes for a schedule.
create table outpace.flow (
  target       text not null,
  limit_name   text not null,
  key          text not null,
  lane         int2 not null,
  replica      int8 not null,
  virtual_time int8 not null default 0,
  waiting      int8 not null default 0,
  units        int8 not null default 0,     -- units that the waiting requests are expected to keep
  due_ns       int8 not null default 0,     -- instant at which the replica asks again
  primary key (target, limit_name, key, lane, replica)
) with (fillfactor = 20);

-- Permits of `concurrent` limits, as each replica last reported them.
create table outpace.permit (
  target     text not null,
  limit_name text not null,
  key        text not null,
  replica    int8 not null,
  held       int8 not null,
  primary key (target, limit_name, key, replica)
) with (fillfactor = 20);

-- One row per replica, which also exists while the replica is idle.
create table outpace.replica (
  id                int8 primary key,
  name              text not null,
  version           text not null,
  config            text not null,          -- digest of its policy, without secrets
  mode              text not null,          -- source of its bookings
  waiting           jsonb not null,         -- waiting requests by target and lane
  seen_ns           int8 not null,
  silent_ns         int8 not null,          -- instant from which it is silent without a heartbeat
  reserved_until_ns int8 not null,          -- end of the reservation of its fallback share
  share_ppm         int8 not null           -- fallback share of every rate, in millionths
) with (fillfactor = 20);

-- Numbers that an operator has pinned. They override the numbers in configuration files.
create table outpace.pin (
  target     text  not null,
  limit_name text  not null,
  spec       jsonb not null,
  primary key (target, limit_name)
);

-- The secret of all replicas, with which the digests of secret keys are made. The first replica
-- writes it.
create table outpace.key_secret (
  single bool primary key default true check (single),
  secret text not null                      -- 32 bytes, hexadecimal
);

-- Types of a booking call (0001/booking.sql). Lanes are counted from 0, arrays from 1.

-- A schedule that a call uses, with the report of its replica.
create type outpace.ask as (
  "limit"  text,
  key      text,
  spec     jsonb,                           -- numbers of the replica's policy
  settles  bool,                            -- true if costs of the limit are settled
  max_keys int8,                            -- number of keys that are counted separately
  held     int8,                            -- permits that the replica holds
  seen     jsonb,                           -- the schedule as the replica last received it
  unbooked jsonb                            -- instants and units that were sent in fallback mode
);

-- Requests of one scope, in arrival order.
create type outpace.run as (
  rows    int[],                            -- positions of its schedules in the call, from 0
  costs   int8[],                           -- units of one request in each of them
  lane    int,
  want    int,                              -- requests to book now
  waiting int8,                             -- requests that wait in all
  expected int8[]                           -- units that one of them is expected to keep, or null
                                            -- if these are the costs
);

-- A call, in the form of its JSON.
create type outpace.call as (
  target         text,
  replica        int8,
  horizon        int8,
  near           int8,                      -- horizon of slots that hold back a faster limit
  lead           int8,                      -- time until the reply arrives; slots begin after it
  queue_for_lock bool,
  weights        int8[],                    -- by lane
  reserves       int8[],                    -- by lane, in millionths
  rows           outpace.ask[],
  runs           outpace.run[]
);

-- The parameters of a call that every decision needs.
create type outpace.caller as (
  me       int8,
  now_ns   int8,
  horizon  int8,
  near     int8,
  lead     int8,
  lost     int8,                            -- millionths of each rate reserved for silent replicas
  weights  int8[],
  reserves int8[]
);

-- The competition for one schedule, as one call sees it.
create type outpace.contest as (
  slowest int8,                             -- least virtual time of another replica's flow
  waiting int8,                             -- requests that wait at other replicas
  units   int8,                             -- units that these requests are expected to keep
  flows   int8,                             -- flows of other replicas
  users   int8[],                           -- by lane: other replicas that compete in it
  vt      int8[],                           -- by lane: virtual time of the caller's flow
  wait    int8[],                           -- by lane: the caller's requests without a slot
  keep    int8[],                           -- by lane: units that these are expected to keep
  due     int8[],                           -- by lane: instant at which the caller asks again
  open    int[],                            -- by lane: runs that may still book
  kept    bool[],                           -- by lane: true if the flow competed shortly before
  stored  bool[]                            -- by lane: true if the flow has or needs a row
);

-- The state that a call reads and changes.
create type outpace.batch as (
  target    outpace.target,
  schedules outpace.schedule[],
  contests  outpace.contest[],
  contested bool[],                         -- true if several flows compete for the schedule
  is_open   bool,                           -- true if the runs are open, so that flows compete
  held      int8[],                         -- permits that all replicas hold
  grants    jsonb[],                        -- the answer to each run, until then its slots
  runs      outpace.run[],                  -- the runs of the call; keys may share a schedule
  map       int[],                          -- by row of the call: its position in schedules, from 0
  overflowed text[]                         -- limits in which keys share a schedule
);

-- The decision for the next request of a run: a slot, or the reason why there is none.
create type outpace.decision as (
  at        int8,                           -- instant of the slot, null if there is none
  reserved  bool,                           -- true if the lane's reserve pays for it
  held_by   int,                            -- position in the run of the schedule that holds it
  ask_again int8                            -- instant at which another call can book more
);

-- Spool

-- Replicas that drain buffers, and the instant at which the last heartbeat of each expires.
create table outpace.drainer (
  id    int8        primary key,
  until timestamptz not null
) with (fillfactor = 50);

create table outpace.buffer (
  number    int8 generated always as identity primary key,
  id        text collate "C" not null unique,
  name      text collate "C" not null,
  terms     text not null,               -- JSON
  paused    text,                        -- reason of the pause, null while it runs
  created   int8 not null,
  next_seq  int8 not null default 1,     -- next free place, never given twice
  last_kept int8 not null default 0,     -- latest `kept`, so that it never falls along the places
  version   int8 not null default 1,     -- grows with every change that its drain should look at
  edition   int8 not null default 1,     -- grows with each change of terms, pause or redrive
  removed   bool not null default false  -- its items are being removed
) with (fillfactor = 50);
create unique index buffer_name on outpace.buffer (name) where not removed;

-- Leases have their own table, so that pushes and drains do not wait for the same row lock.
create table outpace.lease (
  buffer int8 primary key,
  owner  int8,
  term   int8 not null
) with (fillfactor = 50);

create table outpace.item (
  place      int8 generated always as identity primary key,
  id         text collate "C" not null unique,
  buffer     int8 not null,
  born       int8 not null,              -- place at the time of the push
  seq        int8 not null,              -- current place in the buffer
  status     int8 not null default 0,    -- position in ItemStatus::ALL, live if below 3
  request    text not null,              -- JSON
  crc        int8 not null,              -- over id, request and body
  size       int8 not null,
  kept       int8 not null,
  not_before int8 not null,
  expires    int8,
  attempts   int8 not null default 0,
  retries    int8 not null default 0,
  refusals   int8 not null default 0,
  doubtful   bool not null default false,-- true if it may have been sent with an unknown outcome
  finished   int8,
  code       int8,
  error      text,
  token      int8,                       -- of the claim, so that a claim can be repeated
  owner      text collate "C" not null default '', -- client that pushed it, or empty
  counted    int8 not null default 0,    -- bytes that it counts for, with its attempts
  unique (buffer, seq)
) with (fillfactor = 80);
create index item_live on outpace.item (buffer, seq) where status < 3;
-- A push adds no entry to the next two indexes unless the item is delayed.
create index item_parked on outpace.item (buffer, not_before) where status < 2 and not_before > kept;
create index item_status on outpace.item (buffer, status, seq) where status > 2;
create index item_kept on outpace.item (buffer, kept, born);
create index item_over on outpace.item (status, finished) where status > 2;

-- Bodies have their own table, because every attempt rewrites the item's row, which must stay
-- small.
create table outpace.body (place int8 primary key, body bytea not null);
alter table outpace.body alter column body set storage external;

-- Sums of the items of each buffer and client. Pushes and removals change shard 0 under the lock of
-- the buffer's row. Outcomes change one of the other shards, so that they do not wait for a push or
-- for each other. A sum can be negative in one shard.
create table outpace.usage (
  buffer int8 not null,
  owner  text collate "C" not null,
  shard  int2 not null,
  items  int8 not null,
  bytes  int8 not null,
  primary key (buffer, owner, shard)
) with (fillfactor = 50);

create table outpace.attempt (
  place    int8 generated always as identity primary key,
  item     text collate "C" not null,
  buffer   int8 not null,
  number   int8 not null,
  started  int8 not null,
  took     int8 not null,
  waited   int8 not null,
  outcome  text not null,
  code     int8,
  error    text,
  next     int8,
  doubtful bool not null,
  headers  text,                         -- JSON, of the response
  body     bytea,
  cut      bool not null default false,
  recorded int8 not null,
  unique (item, number)
);
create index attempt_in on outpace.attempt (buffer, place);
create index attempt_code on outpace.attempt (code, place);
create index attempt_outcome on outpace.attempt (outcome, place);
create index attempt_recorded on outpace.attempt (recorded);

create table outpace.once (
  key         text collate "C" primary key,
  fingerprint bytea not null,
  items       text not null default '[]',-- JSON: ids and places
  made        int8 not null
);
create index once_made on outpace.once (made);

-- Keys that sealed items or buffers, so that a replica without one of them notices at its start.
create table outpace.seal_key (id text collate "C" primary key);
