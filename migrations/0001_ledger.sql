-- The shared ledger: one schedule per limit (and key) for all replicas. docs/ledger.md explains the rows.
--
-- All instants and durations are nanoseconds of this server's clock; integers only. Functions carry a
-- version in their names: a program calls the ones it was written for, so old and new programs run side
-- by side during a rollout. What a function decides is also written in src/ledger/book.rs; the
-- conformance suite holds the two together.

create schema if not exists outpace;

-- Which programs this schema serves: those whose own number lies between `oldest` and `newest`.
create table outpace.schema_info (
  single bool primary key default true check (single),
  oldest int  not null,
  newest int  not null
);
insert into outpace.schema_info (oldest, newest) values (1, 1);

-- One row per target: the origin's block, and the latest instant seen, so that time never goes back.
create table outpace.target (
  name       text primary key,
  clock_ns   int8 not null default 0,
  epoch      int8 not null default 0,       -- how many blocks there have been
  blocked_ns int8 not null default 0,       -- until when the origin is left alone, or was
  phase      int2 not null default 0,       -- 0 open, 1 blocked, 2 a probe is under way
  rest_ns    int8 not null default 0,       -- when the rest may follow an unanswered probe
  server_ns  int8 not null default 0,       -- when the server that wrote this row had started
  quiet_ns   int8 not null default 0        -- nothing is booked before: a server has just started
) with (fillfactor = 20);

-- One row per limit, or per key of a keyed limit.
create table outpace.schedule (
  target     text   not null,
  limit_name text   not null,
  key        text   not null default '',
  kind       text   not null,               -- token, sliding, fixed or permits
  a          int8   not null,               -- token: interval; sliding, fixed: n; permits: the most
  b          int8   not null,               -- token: burst tolerance; sliding, fixed: the window
  c          int8   not null,               -- token: the period; fixed: the guard
  mark       int8   not null default 0,     -- token: theoretical arrival time; fixed: newest window
  used       int8   not null default 0,     -- fixed: how much of it is used
  log_at     int8[] not null default '{}',  -- sliding: when ...
  log_units  int8[] not null default '{}',  -- ... how many units left, ascending
  reserves   int8[] not null default '{}',  -- by lane: until when its reserve is used
  agreed_ns  int8   not null default 0,     -- when somebody last asked under these numbers
  primary key (target, limit_name, key)
) with (fillfactor = 20);

-- Who competes for a schedule: one lane of one replica.
create table outpace.flow (
  target       text not null,
  limit_name   text not null,
  key          text not null,
  lane         int2 not null,
  replica      int8 not null,
  virtual_time int8 not null default 0,
  waiting      int8 not null default 0,
  due_ns       int8 not null default 0,     -- when it asks again
  primary key (target, limit_name, key, lane, replica)
) with (fillfactor = 20);

-- Permits of limits on how many run at once, as each replica last reported them.
create table outpace.permit (
  target     text not null,
  limit_name text not null,
  key        text not null,
  replica    int8 not null,
  held       int8 not null,
  primary key (target, limit_name, key, replica)
) with (fillfactor = 20);

-- One row per replica, also when it is idle.
create table outpace.replica (
  id          int8 primary key,
  name        text not null,
  version     text not null,
  seen_ns     int8 not null,
  silent_ns   int8 not null,                -- without a further beat it counts as silent from here,
  fenced_ns   int8 not null,                -- and its promise is kept for it until here
  promise_ppm int8 not null                 -- the share of every rate that is its own when it is cut off
) with (fillfactor = 20);

-- Numbers that an operator has pinned; they override what files say.
create table outpace.pin (
  target     text  not null,
  limit_name text  not null,
  bound      jsonb not null,
  primary key (target, limit_name)
);

-- This server's clock. A test may put another in its place, for its own session.
create function outpace.clock_v1() returns int8 language plpgsql volatile as $$
begin
  return coalesce(nullif(current_setting('outpace.clock_ns', true), '')::int8,
                  (extract(epoch from clock_timestamp()) * 1000000)::int8 * 1000);
end $$;

create function outpace.started_v1() returns int8 language plpgsql stable as $$
begin
  return (extract(epoch from pg_postmaster_start_time()) * 1000000)::int8 * 1000;
end $$;

-- Quotient rounded up, for positive numbers.
create function outpace.div_ceil_v1(n int8, d int8) returns int8 language sql immutable as $$
  select (n + d - 1) / d
$$;

-- n + i * k, as far as it fits.
create function outpace.plus_v1(n int8, i int8, k int8) returns int8 language sql immutable as $$
  select least(n + least(i::numeric * k, 9223372036854775807), 9223372036854775807)::int8
$$;

-- What remains of a count, or of a token bucket's rate, when `lost` millionths are kept for others.
create function outpace.share_count_v1(n int8, lost int8) returns int8 language sql immutable as $$
  select case when lost <= 0 then n else trunc(n::numeric * (1000000 - lost) / 1000000)::int8 end
$$;

-- Null where less than half a request per interval remains: booking one would be a debt for long after
-- the others are back.
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

-- The earliest instant from `t` on at which `units` more may leave.
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
  -- fixed: both edges of a window are kept free by the guard c
  win := t / w.b; at := t;
  if t % w.b < w.c then at := win * w.b + w.c;
  elsif t % w.b >= w.b - w.c then win := win + 1; at := win * w.b + w.c;
  end if;
  if win > w.mark then base := win; pos := 0; else base := w.mark; pos := w.used; end if;
  base := base + pos / n + case when pos % n + u > n then 1 else 0 end;
  return case when base = win then at else base * w.b + w.c end;
end $$;

-- A sliding window's log keeps the last n units.
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

-- The schedule after `units` left at `t`.
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

-- As if everything that may be used by `t` had been.
create function outpace.exhausted_v1(w outpace.schedule, t int8) returns outpace.schedule
language plpgsql immutable as $$
begin
  if w.kind = 'token' then w.mark := greatest(w.mark, t + w.b);
  elsif w.kind = 'sliding' then w.log_at := array[t]; w.log_units := array[w.a];
  elsif w.kind = 'fixed' then w.mark := t / w.b; w.used := w.a;
  end if;
  return w;
end $$;

-- The schedule under other numbers: what was used stays used.
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

-- Never less used than what a caller last knew.
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

-- What left without having been booked here, in ascending order: booked now.
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
      -- It kept no guard: near the end of a window it may have reached the origin in the next.
      t := t + w.c;
      if t / w.b = w.mark then w.used := w.used + n; else w := outpace.booked_v1(w, 0, t, n); end if;
    elsif w.kind = 'token' and t + w.c <= now_ns then
      -- Several replicas tell of the same span of time, one after the other.
      w.mark := greatest(w.mark, outpace.plus_v1(t, w.a, n));
    else
      w := outpace.booked_v1(w, 0, t, n);
    end if;
  end loop;
  return w;
end $$;

-- Whether the first numbers allow less than the second: a lower rate, or the same with less burst.
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

-- The share of every rate that is kept for replicas that fell silent, in millionths.
create function outpace.lost_v1(who int8, t int8) returns int8 language plpgsql stable as $$
begin
  return (select least(coalesce(sum(promise_ppm), 0), 1000000) from outpace.replica
           where id <> who and silent_ns < t and fenced_ns > t);
end $$;
