-- Arithmetic of schedules. The same functions exist in src/schedule, and the conformance suite
-- compares the two.

-- Returns this server's time in nanoseconds. A test may set another time for its own session.
create function outpace.clock_v1() returns int8 language plpgsql volatile as $$
begin
  return coalesce(nullif(current_setting('outpace.clock_ns', true), '')::int8,
                  (extract(epoch from clock_timestamp()) * 1000000)::int8 * 1000);
end $$;

-- Returns the start of this server in nanoseconds.
create function outpace.started_v1() returns int8 language plpgsql stable as $$
begin
  return (extract(epoch from pg_postmaster_start_time()) * 1000000)::int8 * 1000;
end $$;

-- Returns n / d, rounded up, for positive numbers.
create function outpace.div_ceil_v1(n int8, d int8) returns int8 language sql immutable as $$
  select (n + d - 1) / d
$$;

-- Returns n + i * k within the range of int8, so that no settlement can overflow.
create function outpace.plus_v1(n int8, i int8, k int8) returns int8 language sql immutable as $$
  select greatest(least(n + i::numeric * k, 9223372036854775807), -9223372036854775807)::int8
$$;

-- Returns the instant that stands for never. It lies beyond any horizon.
create function outpace.never_v1() returns int8 language sql immutable as $$
  select 4611686018427387903::int8
$$;

-- Returns the part of a count that remains if `lost` millionths are reserved for silent replicas.
create function outpace.share_count_v1(n int8, lost int8) returns int8 language sql immutable as $$
  select case when lost <= 0 then n else trunc(n::numeric * (1000000 - lost) / 1000000)::int8 end
$$;

-- Returns the interval of a token bucket if `lost` millionths are reserved for silent replicas.
-- Null if less than one unit per period and less than half of the rate remain, because a booking
-- would be a debt long after the silent replicas have returned.
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

-- Returns the nanoseconds that one unit takes at the full rate, or 1 for permits.
create function outpace.interval_v1(w outpace.schedule) returns int8 language sql immutable as $$
  select greatest(case w.kind when 'token' then w.interval_ns when 'permits' then 1
                              else w.period_ns / greatest(w.n, 1) end, 1)
$$;

-- Returns the earliest instant from `t` on at which a sliding window allows `units` more.
create function outpace.earliest_sliding_v1(w outpace.schedule, n int8, t int8, units int8)
returns int8 language plpgsql immutable as $$
declare push int8; newest int8;
begin
  if n = 0 then return outpace.never_v1(); end if;
  -- The units of settlements are kept apart from the log, so that they can be forgotten.
  if w.used > 0 then w := outpace.unbooked_v1(w, w.mark, least(w.used, n), w.mark, 0); end if;
  if cardinality(w.log_at) = 0 then return t; end if;
  newest := greatest(t, w.log_at[cardinality(w.log_at)]);
  select coalesce(sum(x), 0) + greatest(1, least(units, n)) - n into push from unnest(w.log_units) x;
  if push <= 0 then return newest; end if;
  for k in 1 .. cardinality(w.log_at) loop
    push := push - w.log_units[k];
    if push <= 0 then return greatest(newest, w.log_at[k] + w.period_ns); end if;
  end loop;
  return newest;
end $$;

-- Returns the earliest instant from `t` on at which a fixed window allows `units` more. The guard
-- keeps both edges of each window free.
create function outpace.earliest_fixed_v1(w outpace.schedule, n int8, t int8, units int8)
returns int8 language plpgsql immutable as $$
declare win int8 := t / w.period_ns; at int8 := t; base int8; pos int8;
begin
  if n = 0 then return outpace.never_v1(); end if;
  if t % w.period_ns >= w.period_ns - w.guard_ns then win := win + 1; end if;
  at := greatest(at, win * w.period_ns + w.guard_ns);
  if win > w.mark then base := win; pos := 0; else base := w.mark; pos := w.used; end if;
  base := base + least(pos / n, outpace.never_v1()) + case when pos % n + greatest(1, least(units, n)) > n then 1 else 0 end;
  return case when base = win then at else outpace.plus_v1(w.guard_ns, base, w.period_ns) end;
end $$;

-- Returns the earliest instant from `t` on at which the schedule allows `units` more.
create function outpace.earliest_v1(w outpace.schedule, lost int8, t int8, units int8) returns int8
language plpgsql immutable as $$
declare i int8;
begin
  if w.kind = 'sliding' then
    return outpace.earliest_sliding_v1(w, outpace.share_count_v1(w.n, lost), t, units);
  elsif w.kind = 'fixed' then
    return outpace.earliest_fixed_v1(w, outpace.share_count_v1(w.n, lost), t, units);
  end if;
  i := outpace.share_interval_v1(w.interval_ns, w.period_ns, lost);
  if i is null then return outpace.never_v1(); end if;
  return greatest(t, outpace.plus_v1(greatest(w.mark, t), i, least(units, w.tolerance_ns / i + 1) - 1)
                     - w.tolerance_ns);
end $$;

-- Cuts the log of a sliding window to the last n units.
create function outpace.trimmed_v1(w outpace.schedule) returns outpace.schedule
language plpgsql immutable as $$
declare excess int8; gone int8; k int := 1;
begin
  select coalesce(sum(x), 0) - w.n into excess from unnest(w.log_units) x;
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

-- Moves the theoretical arrival time of a token bucket to `t` or later, with and without the
-- settlements. The bucket is full at `from_ns`. If its costs are settled, the log has the last
-- instants at which the origin's bucket may have been full (src/schedule/starts.rs).
create function outpace.raised_v1(w outpace.schedule, from_ns int8, t int8) returns outpace.schedule
language plpgsql immutable as $$
declare booked int8 := greatest(w.mark - w.settled, t); l int;
begin
  w.mark := greatest(w.mark, t); w.settled := w.mark - booked;
  if w.log_at = '{}' then return w; end if;
  l := cardinality(w.log_at);
  while l > 0 and w.log_units[l] <= t loop l := l - 1; end loop;
  w.log_at := w.log_at[1:l]; w.log_units := w.log_units[1:l];
  if l = 0 or t >= w.used then w.log_at := w.log_at || from_ns; w.log_units := w.log_units || t; end if;
  w.used := greatest(w.used, t);
  if cardinality(w.log_at) > 8 then
    w.log_at := w.log_at[1] || w.log_at[3:]; w.log_units := w.log_units[1] || w.log_units[3:];
  end if;
  return w;
end $$;

-- Returns the schedule after `units` are sent at `t`.
create function outpace.booked_v1(w outpace.schedule, lost int8, t int8, units int8)
returns outpace.schedule language plpgsql immutable as $$
declare l int; i int8;
begin
  if w.kind = 'token' then
    if w.settled > 0 or w.log_at <> '{}' then w := outpace.raised_v1(w, t, t); end if;
    i := outpace.share_interval_v1(w.interval_ns, w.period_ns, lost);
    w.mark := outpace.plus_v1(greatest(w.mark, t), i, units);
    for k in 1 .. cardinality(w.log_at) loop
      w.log_units[k] := outpace.plus_v1(w.log_units[k], i, units);
    end loop;
    return w;
  end if;
  units := greatest(1, least(units, greatest(w.n, 1)));
  if w.kind = 'sliding' then
    l := cardinality(w.log_at);
    if l > 0 and w.log_at[l] >= t then
      w.log_units[l] := w.log_units[l] + units;
    else
      w.log_at := w.log_at || t; w.log_units := w.log_units || units;
    end if;
    return outpace.trimmed_v1(w);
  elsif w.kind = 'fixed' then
    if t / w.period_ns > w.mark then w.mark := t / w.period_ns; w.used := 0; w.settled := 0; end if;
    w.used := outpace.plus_v1(w.used, 1, units);
  end if;
  return w;
end $$;

-- Returns the schedule as if everything that it allows by `t` had been sent.
create function outpace.filled_v1(w outpace.schedule, t int8) returns outpace.schedule
language plpgsql immutable as $$
begin
  if w.kind = 'token' then w := outpace.raised_v1(w, t, outpace.plus_v1(t, 1, w.tolerance_ns));
  elsif w.kind = 'sliding' then w.log_at := array[t]; w.log_units := array[w.n];
  elsif w.kind = 'fixed' then w.mark := t / w.period_ns; w.used := w.n;
  end if;
  return w;
end $$;

-- Returns the theoretical arrival time `mark` at `t` under another interval. What was used stays
-- used.
create function outpace.converted_v1(mark int8, t int8, old_ns int8, new_ns int8) returns int8
language sql immutable as $$
  select outpace.plus_v1(t, outpace.div_ceil_v1(least(greatest(mark - t, 0), 9000000000000000000 - old_ns), old_ns), new_ns)
$$;

-- Returns the schedule `w` under the numbers of `v`. What was used stays used.
create function outpace.adopted_v1(w outpace.schedule, v outpace.schedule, t int8)
returns outpace.schedule language plpgsql immutable as $$
declare a outpace.schedule := w;
begin
  a.kind := v.kind; a.n := v.n; a.period_ns := v.period_ns; a.interval_ns := v.interval_ns;
  a.tolerance_ns := v.tolerance_ns; a.guard_ns := v.guard_ns; a.agreed_ns := t;
  if w.kind <> v.kind then
    a.mark := 0; a.used := 0; a.settled := 0; a.log_at := '{}'; a.log_units := '{}';
    return outpace.filled_v1(a, t);
  end if;
  if v.kind = 'token' then
    a.mark := outpace.converted_v1(w.mark, t, w.interval_ns, v.interval_ns);
    a.settled := a.mark - outpace.converted_v1(w.mark - w.settled, t, w.interval_ns, v.interval_ns);
    if w.log_at <> '{}' then a.used := outpace.converted_v1(w.used, t, w.interval_ns, v.interval_ns); end if;
    for k in 1 .. cardinality(w.log_at) loop
      a.log_units[k] := outpace.converted_v1(w.log_units[k], t, w.interval_ns, v.interval_ns);
    end loop;
  elsif v.kind = 'sliding' then
    a.used := least(a.used, a.n);
    return outpace.trimmed_v1(a);
  elsif v.kind = 'fixed' and w.period_ns <> v.period_ns then
    a.mark := greatest(w.mark * w.period_ns / v.period_ns, (w.mark + 1) * w.period_ns / v.period_ns);
  end if;
  return a;
end $$;

-- Returns the schedule with at least the usage of `seen`, which is of the same kind. It is what a
-- replica last received, and the server may have forgotten it.
create function outpace.merged_v1(w outpace.schedule, seen outpace.schedule) returns outpace.schedule
language plpgsql immutable as $$
declare booked int8;
begin
  if w.kind = 'token' or (w.kind = 'fixed' and w.mark = seen.mark) then
    if w.kind = 'token' then
      booked := greatest(w.mark - w.settled, seen.mark - seen.settled);
      if w.log_at <> '{}' and seen.mark > w.mark then
        if seen.log_at = '{}' then seen.used := 0; seen.log_at := array[0]; seen.log_units := array[seen.mark]; end if;
        w.used := seen.used; w.log_at := seen.log_at; w.log_units := seen.log_units;
      end if;
      w.mark := greatest(w.mark, seen.mark); w.settled := w.mark - booked;
    else
      booked := greatest(w.used - w.settled, seen.used - seen.settled);
      w.used := greatest(w.used, seen.used); w.settled := w.used - booked;
    end if;
  elsif w.kind = 'fixed' and seen.mark > w.mark then
    w.mark := seen.mark; w.used := seen.used; w.settled := seen.settled;
  elsif w.kind = 'sliding' then
    if (seen.mark, seen.used) > (w.mark, w.used) then w.mark := seen.mark; w.used := seen.used; end if;
    select coalesce(array_agg(at order by at), '{}'), coalesce(array_agg(n order by at), '{}')
      into w.log_at, w.log_units from (
      select at, max(n) n from (
        select * from unnest(w.log_at, w.log_units) as x(at, n)
        union all
        select * from unnest(seen.log_at, seen.log_units) as x(at, n)) both_logs
      group by at) merged;
    w := outpace.trimmed_v1(w);
  end if;
  return w;
end $$;

-- Books `units` that were sent at `t` in fallback mode, without a booking here. While `lost`
-- millionths are reserved for silent replicas, the next units follow at the share that is left.
create function outpace.unbooked_v1(w outpace.schedule, t int8, units int8, now_ns int8, lost int8)
returns outpace.schedule language plpgsql immutable as $$
declare i int8;
begin
  if w.kind = 'sliding' then
    select array_agg(at order by at), array_agg(m order by at) into w.log_at, w.log_units from (
      select at, sum(m)::int8 m from (
        select * from unnest(w.log_at, w.log_units) as x(at, m) union all select t, units) both_logs
      group by at) merged;
    return outpace.trimmed_v1(w);
  elsif w.kind = 'fixed' then
    -- Fallback mode keeps no guard, so the request may have reached the origin in the next window.
    t := t + w.guard_ns;
    if t / w.period_ns = w.mark then w.used := outpace.plus_v1(w.used, 1, units); return w; end if;
  elsif w.kind = 'token' then
    -- Several replicas report the same span of time one after the other.
    w := case when t + w.period_ns <= now_ns then outpace.raised_v1(w, t, outpace.plus_v1(t, w.interval_ns, units))
              else outpace.booked_v1(w, 0, t, units) end;
    i := case when lost > 0 then outpace.share_interval_v1(w.interval_ns, w.period_ns, lost) end;
    return case when i is null then w else outpace.raised_v1(w, t, outpace.plus_v1(t, i, units)) end;
  end if;
  return outpace.booked_v1(w, 0, t, units);
end $$;

-- Returns the token bucket after a correction of a cost that was booked at `booked` or before, by
-- `units`. Units come back as far as the origin's bucket had room for them.
create function outpace.returned_v1(w outpace.schedule, units int8, known int8, booked int8)
returns outpace.schedule language plpgsql immutable as $$
declare latest int8 := -1; l int := cardinality(w.log_at);
begin
  if w.log_at[l] <= booked then w.used := greatest(outpace.plus_v1(w.used, w.interval_ns, known), 0); end if;
  for k in reverse l .. 1 loop
    if units > 0 or w.log_at[k] <= booked then
      w.log_units[k] := greatest(outpace.plus_v1(w.log_units[k], w.interval_ns, units), 0);
    end if;
    if w.log_units[k] <= latest then w.log_at[k] := -1; end if;
    latest := greatest(latest, w.log_units[k]);
  end loop;
  select array_agg(at order by k), array_agg(tat order by k) into w.log_at, w.log_units
    from unnest(w.log_at, w.log_units) with ordinality as x(at, tat, k) where at >= 0;
  w.mark := w.log_units[1]; w.used := least(w.used, w.mark);
  return w;
end $$;

-- Returns the schedule after a correction of a cost that was booked at `booked` or before: by
-- `units`, which may be negative, because the request is known to have used `known` more.
create function outpace.corrected_v1(w outpace.schedule, units int8, known int8, booked int8, now_ns int8)
returns outpace.schedule language plpgsql immutable as $$
declare back int8 := outpace.plus_v1(0, -1, units); gone int8;
begin
  if w.kind = 'token' then
    if w.log_at <> '{}' then w := outpace.returned_v1(w, units, known, booked);
    else w.mark := greatest(outpace.plus_v1(w.mark, w.interval_ns, units), 0);
    end if;
    w.settled := least(outpace.plus_v1(w.settled, w.interval_ns, greatest(units, 0)), w.mark);
  elsif w.kind = 'fixed' and (units >= 0 or booked / w.period_ns = w.mark) then
    w.used := greatest(outpace.plus_v1(w.used, 1, units), 0);
    w.settled := least(outpace.plus_v1(w.settled, 1, greatest(units, 0)), w.used);
  elsif w.kind = 'sliding' and units > 0 then
    if outpace.plus_v1(w.mark, 1, w.period_ns) <= now_ns then w.used := 0; end if;
    w.used := least(outpace.plus_v1(w.used, 1, units), w.n); w.mark := now_ns;
  elsif w.kind = 'sliding' then
    for k in reverse cardinality(w.log_at) .. 1 loop
      continue when w.log_at[k] > booked;
      exit when back <= 0 or outpace.plus_v1(w.log_at[k], 1, w.period_ns) <= now_ns;
      gone := least(back, w.log_units[k]);
      w.log_units[k] := w.log_units[k] - gone; back := back - gone;
    end loop;
    select coalesce(array_agg(at order by at), '{}'), coalesce(array_agg(m order by at), '{}')
      into w.log_at, w.log_units from unnest(w.log_at, w.log_units) as x(at, m) where m > 0;
  end if;
  return w;
end $$;

-- Returns the schedule without what settlements added to the estimates. The estimates stay used.
create function outpace.unsettled_v1(w outpace.schedule) returns outpace.schedule
language plpgsql immutable as $$
begin
  if w.kind = 'token' then
    w.mark := w.mark - w.settled;
    for k in 1 .. cardinality(w.log_at) loop w.log_units[k] := greatest(w.log_units[k] - w.settled, 0); end loop;
    if w.log_at <> '{}' then w.used := least(w.used, w.mark); end if;
  elsif w.kind = 'fixed' then w.used := w.used - w.settled;
  elsif w.kind = 'sliding' then w.mark := 0; w.used := 0;
  end if;
  w.settled := 0;
  return w;
end $$;

-- Returns true if the first schedule allows less than the second one, by a lower rate or by the
-- same rate with a smaller burst. Permits and rates cannot be compared.
create function outpace.is_stricter_v1(x outpace.schedule, y outpace.schedule) returns bool
language plpgsql immutable as $$
declare x_units numeric := 1; x_ns numeric := x.interval_ns; y_units numeric := 1; y_ns numeric := y.interval_ns;
begin
  if x.kind = 'permits' or y.kind = 'permits' then return x.kind = y.kind and x.n < y.n; end if;
  if x.kind <> 'token' then x_units := x.n; x_ns := x.period_ns; end if;
  if y.kind <> 'token' then y_units := y.n; y_ns := y.period_ns; end if;
  return (x_units * y_ns, x.tolerance_ns) < (y_units * x_ns, y.tolerance_ns);
end $$;
