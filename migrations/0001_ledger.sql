-- The shared ledger, with one schedule per limit and key for all replicas. docs/ledger.md
-- explains the rows.
--
-- All instants and durations are integers in nanoseconds of this server's clock. Functions carry
-- a version in their names, and a program calls the versions that it was written for. So old and
-- new programs run side by side during a rollout. The decision of these functions also exists in
-- src/ledger/book.rs, and the conformance suite compares the two.

create schema if not exists outpace;

-- The range of programs that this schema serves, from number `oldest` to number `newest`.
create table outpace.schema_info (
  single bool primary key default true check (single),
  oldest int  not null,
  newest int  not null
);
insert into outpace.schema_info (oldest, newest) values (1, 1);

-- One row per target, with the block of its origin. The latest instant is stored, so that time
-- never goes back.
create table outpace.target (
  name       text primary key,
  clock_ns   int8 not null default 0,
  epoch      int8 not null default 0,       -- number of blocks so far
  blocked_ns int8 not null default 0,       -- end of the last block
  phase      int2 not null default 0,       -- 0 open, 1 blocked, 2 probing
  rest_ns    int8 not null default 0,       -- end of the wait for an unanswered probe
  server_ns  int8 not null default 0,       -- start of the server that wrote this row
  quiet_ns   int8 not null default 0        -- end of the quiet time after a server start
) with (fillfactor = 20);

-- One row per limit, or per key of a keyed limit.
create table outpace.schedule (
  target     text   not null,
  limit_name text   not null,
  key        text   not null default '',
  kind       text   not null,               -- token, sliding, fixed or permits
  a          int8   not null,               -- token: interval, windows: n, permits: maximum
  b          int8   not null,               -- token: burst tolerance, windows: length
  c          int8   not null,               -- token: period, fixed: guard
  mark       int8   not null default 0,     -- token: theoretical arrival time, fixed: newest window
  used       int8   not null default 0,     -- fixed: units used in the newest window
  log_at     int8[] not null default '{}',  -- sliding: instants, ascending
  log_units  int8[] not null default '{}',  -- sliding: units sent at these instants
  reserves   int8[] not null default '{}',  -- by lane: instant up to which its reserve is used
  agreed_ns  int8   not null default 0,     -- last call under these numbers
  primary key (target, limit_name, key)
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
  id          int8 primary key,
  name        text not null,
  version     text not null,
  seen_ns     int8 not null,
  silent_ns   int8 not null,                -- instant from which it is silent without a heartbeat
  fenced_ns   int8 not null,                -- end of the reservation of its fallback share
  promise_ppm int8 not null                 -- fallback share of every rate, in millionths
) with (fillfactor = 20);

-- Numbers that an operator has pinned. They override the numbers in configuration files.
create table outpace.pin (
  target     text  not null,
  limit_name text  not null,
  bound      jsonb not null,
  primary key (target, limit_name)
);

-- Returns this server's time in nanoseconds. A test may set another time for its own session.
create function outpace.clock_v1() returns int8 language plpgsql volatile as $$
begin
  return coalesce(nullif(current_setting('outpace.clock_ns', true), '')::int8,
                  (extract(epoch from clock_timestamp()) * 1000000)::int8 * 1000);
end $$;

create function outpace.started_v1() returns int8 language plpgsql stable as $$
begin
  return (extract(epoch from pg_postmaster_start_time()) * 1000000)::int8 * 1000;
end $$;

-- Returns the quotient, rounded up, for positive numbers.
create function outpace.div_ceil_v1(n int8, d int8) returns int8 language sql immutable as $$
  select (n + d - 1) / d
$$;

-- Returns n + i * k, or the largest int8 if the sum is larger.
create function outpace.plus_v1(n int8, i int8, k int8) returns int8 language sql immutable as $$
  select least(n + least(i::numeric * k, 9223372036854775807), 9223372036854775807)::int8
$$;

-- Returns the part of a count that is left after `lost` millionths are reserved for silent
-- replicas.
create function outpace.share_count_v1(n int8, lost int8) returns int8 language sql immutable as $$
  select case when lost <= 0 then n else trunc(n::numeric * (1000000 - lost) / 1000000)::int8 end
$$;

-- Returns the interval of a token bucket after `lost` millionths are reserved for silent
-- replicas. The result is null if less than one unit per period and less than half of the rate
-- are left. A booking at such a rate would be a debt for a long time after the silent replicas
-- have reconnected.
create function outpace.share_interval_v1(i int8, period int8, lost int8) returns int8
language plpgsql immutable as $$
declare whole int8;
begin
  if lost <= 0 then return i; end if;
  whole := outpace.share_count_v1(outpace.div_ceil_v1(period, i), lost);
  if whole > 0 then return outpace.div_ceil_v1(period, whole); end if;
  if lost > 500000 then return null; end if;
  return trunc(i::numeric * 1000000 / (1000000 - lost))::int8;
end $$;

-- Returns the earliest instant, not before `t`, at which `units` more may be sent.
create function outpace.earliest_v1(w outpace.schedule, lost int8, t int8, units int8) returns int8
language plpgsql immutable as $$
declare i int8; n int8; u int8; push int8; total int8; win int8; base int8; pos int8; at int8;
begin
  if w.kind = 'token' then
    i := outpace.share_interval_v1(w.a, w.c, lost);
    if i is null then return 4611686018427387903; end if;
    return greatest(t, outpace.plus_v1(greatest(w.mark, t), i, least(units, w.b / i + 1) - 1) - w.b);
  end if;
  n := outpace.share_count_v1(w.a, lost);
  if n = 0 then return 4611686018427387903; end if;
  u := greatest(1, least(units, n));
  if w.kind = 'sliding' then
    if cardinality(w.log_at) = 0 then return t; end if;
    t := greatest(t, w.log_at[cardinality(w.log_at)]);
    select coalesce(sum(x), 0) into total from unnest(w.log_units) x;
    push := total + u - n;
    if push <= 0 then return t; end if;
    for k in 1 .. cardinality(w.log_at) loop
      push := push - w.log_units[k];
      if push <= 0 then return greatest(t, w.log_at[k] + w.b); end if;
    end loop;
    return t;
  end if;
  -- Fixed window: the guard c keeps both edges of a window free.
  win := t / w.b; at := t;
  if t % w.b < w.c then at := win * w.b + w.c;
  elsif t % w.b >= w.b - w.c then win := win + 1; at := win * w.b + w.c;
  end if;
  if win > w.mark then base := win; pos := 0; else base := w.mark; pos := w.used; end if;
  base := base + pos / n + case when pos % n + u > n then 1 else 0 end;
  return case when base = win then at else base * w.b + w.c end;
end $$;

-- Reduces the log of a sliding window to its last n units.
create function outpace.trimmed_v1(w outpace.schedule) returns outpace.schedule
language plpgsql immutable as $$
declare excess int8; gone int8; k int := 1;
begin
  select coalesce(sum(x), 0) - w.a into excess from unnest(w.log_units) x;
  while excess > 0 and k <= cardinality(w.log_units) loop
    gone := least(excess, w.log_units[k]);
    excess := excess - gone;
    w.log_units[k] := w.log_units[k] - gone;
    exit when w.log_units[k] > 0;
    k := k + 1;
  end loop;
  if k > 1 then w.log_at := w.log_at[k:]; w.log_units := w.log_units[k:]; end if;
  return w;
end $$;

-- Returns the schedule after `units` are booked at `t`.
create function outpace.booked_v1(w outpace.schedule, lost int8, t int8, units int8)
returns outpace.schedule language plpgsql immutable as $$
declare l int;
begin
  if w.kind = 'token' then
    w.mark := outpace.plus_v1(greatest(w.mark, t), outpace.share_interval_v1(w.a, w.c, lost), units);
  elsif w.kind = 'sliding' then
    units := greatest(1, least(units, greatest(w.a, 1)));
    l := cardinality(w.log_at);
    if l > 0 and w.log_at[l] >= t then
      w.log_units[l] := w.log_units[l] + units;
    else
      w.log_at := w.log_at || t; w.log_units := w.log_units || units;
    end if;
    w := outpace.trimmed_v1(w);
  elsif w.kind = 'fixed' then
    if t / w.b > w.mark then w.mark := t / w.b; w.used := 0; end if;
    w.used := w.used + greatest(1, least(units, greatest(w.a, 1)));
  end if;
  return w;
end $$;

-- Returns the schedule as if everything that is allowed by `t` had been used.
create function outpace.exhausted_v1(w outpace.schedule, t int8) returns outpace.schedule
language plpgsql immutable as $$
begin
  if w.kind = 'token' then w.mark := greatest(w.mark, t + w.b);
  elsif w.kind = 'sliding' then w.log_at := array[t]; w.log_units := array[w.a];
  elsif w.kind = 'fixed' then w.mark := t / w.b; w.used := w.a;
  end if;
  return w;
end $$;

-- Returns the schedule under other numbers. Past usage stays counted.
create function outpace.adopted_v1(w outpace.schedule, kind text, a int8, b int8, c int8, t int8)
returns outpace.schedule language plpgsql immutable as $$
declare v outpace.schedule := w; newest int8;
begin
  v.kind := kind; v.a := a; v.b := b; v.c := c;
  if w.kind <> kind then
    v.mark := 0; v.used := 0; v.log_at := '{}'; v.log_units := '{}';
    return outpace.exhausted_v1(v, t);
  end if;
  if kind = 'token' then
    v.mark := outpace.plus_v1(t, outpace.div_ceil_v1(least(greatest(w.mark - t, 0), 9000000000000000000 - w.a), w.a), a);
  elsif kind = 'sliding' then
    return outpace.trimmed_v1(v);
  elsif kind = 'fixed' and w.b <> b then
    newest := (w.mark + 1) * w.b;
    v.mark := greatest(w.mark * w.b / b, newest / b);
  end if;
  return v;
end $$;

-- Merges the state that a caller last received, so that usage is never lost.
create function outpace.merged_v1(w outpace.schedule, seen jsonb) returns outpace.schedule
language plpgsql immutable as $$
declare m int8 := (seen ->> 'mark')::int8; u int8 := (seen ->> 'used')::int8;
begin
  if w.kind = 'token' then
    w.mark := greatest(w.mark, m);
  elsif w.kind = 'fixed' then
    if m > w.mark or (m = w.mark and u > w.used) then w.mark := m; w.used := u; end if;
  elsif w.kind = 'sliding' then
    select array_agg(at order by at), array_agg(n order by at) into w.log_at, w.log_units from (
      select at, max(n) n from (
        select * from unnest(w.log_at, w.log_units) as x(at, n)
        union all
        select (e ->> 0)::int8, (e ->> 1)::int8 from jsonb_array_elements(seen -> 'log') e) both_logs
      group by at) merged;
    w.log_at := coalesce(w.log_at, '{}'); w.log_units := coalesce(w.log_units, '{}');
    w := outpace.trimmed_v1(w);
  end if;
  return w;
end $$;

-- Books requests that were sent in fallback mode, as pairs of instant and units in ascending
-- order.
create function outpace.spent_v1(w outpace.schedule, spent jsonb, now_ns int8) returns outpace.schedule
language plpgsql immutable as $$
declare e jsonb; t int8; n int8;
begin
  for e in select * from jsonb_array_elements(spent) loop
    t := (e ->> 0)::int8; n := (e ->> 1)::int8;
    if w.kind = 'sliding' then
      select array_agg(at order by at), array_agg(m order by at) into w.log_at, w.log_units from (
        select at, sum(m)::int8 m from (
          select * from unnest(w.log_at, w.log_units) as x(at, m) union all select t, n) both_logs
        group by at) merged;
      w := outpace.trimmed_v1(w);
    elsif w.kind = 'fixed' then
      -- Fallback mode keeps no guard. A request near the end of a window may have arrived in the
      -- next one.
      t := t + w.c;
      if t / w.b = w.mark then w.used := w.used + n; else w := outpace.booked_v1(w, 0, t, n); end if;
    elsif w.kind = 'token' and t + w.c <= now_ns then
      -- Several replicas report the same span of time, one after the other. Usage older than one
      -- period counts only for itself, so these reports do not add up to a debt.
      w.mark := greatest(w.mark, outpace.plus_v1(t, w.a, n));
    else
      w := outpace.booked_v1(w, 0, t, n);
    end if;
  end loop;
  return w;
end $$;

-- Returns true if the first numbers allow less than the second ones, by a lower rate or by a
-- smaller burst at the same rate.
create function outpace.stricter_v1(k1 text, a1 int8, b1 int8, k2 text, a2 int8, b2 int8) returns bool
language sql immutable as $$
  select case
    when (k1 = 'permits') <> (k2 = 'permits') then false
    when k1 = 'permits' then a1 < a2
    else
      (case when k1 = 'token' then 1 else a1 end::numeric * case when k2 = 'token' then a2 else b2 end,
       case when k1 = 'token' then b1 else 0 end)
      <
      (case when k2 = 'token' then 1 else a2 end::numeric * case when k1 = 'token' then a1 else b1 end,
       case when k2 = 'token' then b2 else 0 end)
    end
$$;

-- Returns the part of every rate that is reserved for silent replicas, in millionths.
create function outpace.lost_v1(who int8, t int8) returns int8 language plpgsql stable as $$
begin
  return (select least(coalesce(sum(promise_ppm), 0), 1000000) from outpace.replica
           where id <> who and silent_ns < t and fenced_ns > t);
end $$;
