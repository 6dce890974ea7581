-- Competition of flows for a schedule by weighted fair queueing. src/ledger/row.rs explains it. The
-- caller's flows are in the arrays of `contest`, and the flows of other replicas in its totals.

-- Virtual time of one unit at weight 1.
create function outpace.scale_v1() returns int8 language sql immutable as $$ select 1000000::int8 $$;

-- Time for which a flow still counts after it was due to ask again.
create function outpace.linger_v1() returns int8 language sql immutable as $$ select 500000000::int8 $$;

-- Returns a contest without flows.
create function outpace.no_contest_v1(lanes int) returns outpace.contest language sql immutable as $$
  select row(null, 0, 0, 0, z, z, z, z, z, array_fill(0, array[lanes]), no, no)::outpace.contest
    from (select array_fill(0::int8, array[lanes]) z, array_fill(false, array[lanes]) no) blank
$$;

-- Reads the flows that compete for the schedule `w`.
create function outpace.contest_v1(w outpace.schedule, c outpace.contest, me int8, now_ns int8)
returns outpace.contest language plpgsql stable as $$
declare f outpace.flow; x int; is_due bool;
begin
  for f in select * from outpace.flow s
     where s.target = w.target and s.limit_name = w.limit_name and s.key = w.key loop
    x := f.lane + 1; is_due := f.due_ns + outpace.linger_v1() > now_ns;
    if f.replica = me then
      c.stored[x] := true; c.vt[x] := f.virtual_time; c.due[x] := f.due_ns; c.kept[x] := is_due;
    elsif f.waiting > 0 and is_due then
      c.users[x] := c.users[x] + 1; c.flows := c.flows + 1; c.waiting := c.waiting + f.waiting;
      c.units := outpace.plus_v1(c.units, 1, f.units);
      c.slowest := least(coalesce(c.slowest, f.virtual_time), f.virtual_time);
    end if;
  end loop;
  return c;
end $$;

-- Returns true if the caller's flow in lane `x` (from 1) competes.
create function outpace.is_active_v1(c outpace.contest, x int, now_ns int8) returns bool
language plpgsql immutable as $$
begin
  return c.open[x] > 0 or (c.wait[x] > 0 and c.due[x] + outpace.linger_v1() > now_ns);
end $$;

-- Returns the number of competing flows.
create function outpace.competitors_v1(c outpace.contest, now_ns int8) returns int8
language plpgsql immutable as $$
declare count int8 := c.flows;
begin
  for x in 1 .. cardinality(c.open) loop
    if outpace.is_active_v1(c, x, now_ns) then count := count + 1; end if;
  end loop;
  return count;
end $$;

-- Returns the least virtual time of all competing flows except the caller's in `lane`, or null.
create function outpace.slowest_v1(c outpace.contest, lane int, now_ns int8) returns int8
language plpgsql immutable as $$
declare slowest int8 := c.slowest;
begin
  for x in 1 .. cardinality(c.open) loop
    if x <> lane + 1 and outpace.is_active_v1(c, x, now_ns) then
      slowest := least(coalesce(slowest, c.vt[x]), c.vt[x]);
    end if;
  end loop;
  return slowest;
end $$;

-- Opens a run in `lane`, so that its flow competes. A flow that was idle starts at the least
-- virtual time, so it gets neither credit nor debt for the idle time.
create function outpace.opened_v1(c outpace.contest, lane int, now_ns int8) returns outpace.contest
language plpgsql immutable as $$
declare x int := lane + 1;
begin
  if not c.kept[x] and c.open[x] = 0 and cardinality(c.open) > 1 then
    c.vt[x] := coalesce(outpace.slowest_v1(c, lane, now_ns), 0);
  end if;
  c.open[x] := c.open[x] + 1;
  return c;
end $$;

-- Closes a run in `lane` that can book no more. If this schedule holds the run, `left_over` is the
-- number of its requests without a slot, each of which is expected to keep `units`, and `ask_again`
-- is the instant of the next call.
create function outpace.closed_v1(c outpace.contest, lane int, is_contested bool, left_over int8,
                                  units int8, ask_again int8, now_ns int8)
returns outpace.contest language plpgsql immutable as $$
declare x int := lane + 1;
begin
  c.open[x] := c.open[x] - 1;
  if left_over is not null then
    c.wait[x] := c.wait[x] + left_over; c.keep[x] := outpace.plus_v1(c.keep[x], units, left_over);
    c.due[x] := greatest(c.due[x], ask_again, now_ns);
  elsif is_contested then
    c.due[x] := greatest(c.due[x], now_ns);
  end if;
  c.stored[x] := c.stored[x] or c.wait[x] > 0 or is_contested;
  return c;
end $$;

-- Returns true if several flows compete for the schedule.
create function outpace.is_contested_v1(c outpace.contest, now_ns int8) returns bool
language plpgsql immutable as $$
begin
  return cardinality(c.open) > 1 and outpace.competitors_v1(c, now_ns) > 1;
end $$;

-- Charges the flow in `lane` for a booking. The weight of a lane is divided among the replicas that
-- use it.
create function outpace.charged_v1(c outpace.contest, lane int, cost int8, weight int8)
returns outpace.contest language plpgsql immutable as $$
begin
  c.vt[lane + 1] := least(c.vt[lane + 1] + div(cost::numeric * outpace.scale_v1() * (c.users[lane + 1] + 1), weight),
                          9223372036854775807)::int8;
  return c;
end $$;

-- Returns true if the flow in `lane` is ahead of the slowest other flow by less than its share of
-- one horizon.
create function outpace.is_fair_v1(c outpace.contest, lane int, weights int8[], interval_ns int8,
                                   horizon int8, now_ns int8)
returns bool language plpgsql immutable as $$
declare ahead int8 := c.vt[lane + 1] - outpace.slowest_v1(c, lane, now_ns); sum int8 := 0;
begin
  if ahead is null or ahead <= 0 then return true; end if;
  for x in 1 .. cardinality(c.open) loop
    if c.users[x] > 0 or outpace.is_active_v1(c, x, now_ns) then sum := sum + coalesce(weights[x], 1); end if;
  end loop;
  return ahead < horizon * outpace.scale_v1() / interval_ns / greatest(sum, 1);
end $$;

-- Returns the number of competing flows with a smaller virtual time than the caller's in `lane`.
create function outpace.rank_v1(w outpace.schedule, c outpace.contest, lane int, me int8, now_ns int8)
returns int8 language plpgsql stable as $$
declare rank int8; own_lane int := lane; vt int8 := c.vt[lane + 1];
begin
  select count(*) into rank from outpace.flow f
   where f.target = w.target and f.limit_name = w.limit_name and f.key = w.key and f.replica <> me
     and f.waiting > 0 and f.due_ns + outpace.linger_v1() > now_ns
     and (f.virtual_time, f.lane::int, f.replica) < (vt, own_lane, me);
  for x in 1 .. cardinality(c.open) loop
    if x <> lane + 1 and (c.vt[x], x) < (vt, lane + 1) and outpace.is_active_v1(c, x, now_ns) then
      rank := rank + 1;
    end if;
  end loop;
  return rank;
end $$;

-- Returns the weight of the other replicas' flows, in millionths of the weight of the caller's flow
-- in `lane`.
create function outpace.crowd_weight_v1(c outpace.contest, lane int, weights int8[], now_ns int8)
returns int8 language plpgsql immutable as $$
declare sum int8 := 0; users int8; own int8;
begin
  own := coalesce(weights[lane + 1], 1) * outpace.scale_v1() / (c.users[lane + 1] + 1);
  for x in 1 .. cardinality(c.users) loop
    continue when c.users[x] = 0;
    users := c.users[x] + case when outpace.is_active_v1(c, x, now_ns) then 1 else 0 end;
    sum := sum + c.users[x] * (coalesce(weights[x], 1) * outpace.scale_v1() / users);
  end loop;
  return sum * outpace.scale_v1() / greatest(own, 1);
end $$;

-- Writes the caller's flows that competed.
create function outpace.save_contest_v1(w outpace.schedule, c outpace.contest, me int8) returns void
language plpgsql volatile as $$
begin
  for x in 1 .. cardinality(c.stored) loop
    continue when not c.stored[x];
    insert into outpace.flow values (w.target, w.limit_name, w.key, x - 1, me, c.vt[x], c.wait[x], c.keep[x], c.due[x])
      on conflict on constraint flow_pkey do update
      set virtual_time = excluded.virtual_time, waiting = excluded.waiting, units = excluded.units,
          due_ns = excluded.due_ns;
  end loop;
end $$;
