-- One booking call: books the slots that a replica asks for, as far as the schedules allow them. A
-- call is one round trip and one transaction. Its argument and result are `Call` and `Answer` of
-- src/ledger/call.rs, and the same decision is in src/ledger/allocation.rs.
--
-- PL/pgSQL prepares each expression once per transaction, which takes longer than its execution.
-- So the functions have few expressions rather than few lines.

-- Takes the lock of a target. With `queue` the call waits in line for up to 20 ms, because random
-- retries can starve a replica. A long line slows the lock down, and then replicas do not queue.
create function outpace.lock_v1(p_target text, queue bool) returns bool language plpgsql volatile as $$
begin
  if pg_try_advisory_xact_lock(hashtextextended('outpace.' || p_target, 0)) then return true; end if;
  if queue is not true then return false; end if;
  begin
    perform set_config('lock_timeout', '20ms', true);
    perform pg_advisory_xact_lock(hashtextextended('outpace.' || p_target, 0));
  exception when lock_not_available then
    return false;
  end;
  perform set_config('lock_timeout', '0', true);
  return true;
end $$;

-- Reads or makes the row of a target. A row that another server start wrote may lack its last
-- writes, so nothing is booked for 2 s. That gives all replicas time to report what they last saw.
create function outpace.target_v1(p_target text) returns outpace.target language plpgsql volatile as $$
declare t outpace.target; started int8 := outpace.started_v1();
begin
  select * into t from outpace.target where name = p_target;
  if t.server_ns = started then return t; end if;
  insert into outpace.target as known (name, server_ns) values (p_target, started)
    on conflict (name) do update set server_ns = started,
      quiet_ns = greatest(outpace.clock_v1(), known.clock_ns) + 2000000000
    returning * into t;
  return t;
end $$;

-- Writes a schedule.
create function outpace.save_schedule_v1(w outpace.schedule) returns void language plpgsql volatile as $$
begin
  update outpace.schedule s
     set kind = w.kind, n = w.n, period_ns = w.period_ns, interval_ns = w.interval_ns,
         tolerance_ns = w.tolerance_ns, guard_ns = w.guard_ns, mark = w.mark, used = w.used,
         log_at = w.log_at, log_units = w.log_units, reserves = w.reserves, agreed_ns = w.agreed_ns,
         settled = w.settled
   where s.target = w.target and s.limit_name = w.limit_name and s.key = w.key;
  -- A sweep may have removed it as idle since it was read.
  if not found then insert into outpace.schedule select w.*; end if;
end $$;

-- Returns true if a new key of a limit may have a schedule of its own, and counts it.
create function outpace.counts_key_v1(v outpace.schedule, p_max int8) returns bool language plpgsql volatile as $$
begin
  insert into outpace.key_count as c values (v.target, v.limit_name, 1)
    on conflict (target, limit_name) do update set live = c.live + 1 where c.live < coalesce(p_max, 100000);
  return found;
end $$;

-- Returns true if both schedules have the same numbers.
create function outpace.same_spec_v1(w outpace.schedule, v outpace.schedule) returns bool
language plpgsql immutable as $$
begin
  return (w.kind, w.n, w.period_ns, w.interval_ns, w.tolerance_ns, w.guard_ns)
       = (v.kind, v.n, v.period_ns, v.interval_ns, v.tolerance_ns, v.guard_ns);
end $$;

-- Applies the numbers `v` of the caller to the schedule `w`. While replicas disagree, the strictest
-- numbers apply, until no call has used them for 0.8 s.
create function outpace.agreed_v1(w outpace.schedule, v outpace.schedule, now_ns int8)
returns outpace.schedule language plpgsql volatile as $$
begin
  if not outpace.is_stricter_v1(v, w) and now_ns <= w.agreed_ns + 800000000 then return w; end if;
  if v.kind = 'permits' and w.kind <> 'permits' then
    delete from outpace.permit p
     where p.target = w.target and p.limit_name = w.limit_name and p.key = w.key;
  end if;
  return outpace.adopted_v1(w, v, now_ns);
end $$;

-- Returns the schedule with what the replica reports: its last known state, and the requests that
-- it sent in fallback mode.
create function outpace.reported_v1(w outpace.schedule, r outpace.ask, p outpace.caller)
returns outpace.schedule language plpgsql immutable as $$
declare e jsonb; seen outpace.schedule;
begin
  if jsonb_typeof(r.seen) = 'object' then
    seen := jsonb_populate_record(w, '{"mark": 0, "used": 0, "log_at": [], "log_units": [], "settled": 0}' || r.seen);
    if seen.kind = w.kind and (w.kind <> 'fixed' or seen.period_ns = w.period_ns) then
      w := outpace.merged_v1(w, seen);
    end if;
  end if;
  for e in select * from jsonb_array_elements(r.unbooked) loop
    w := outpace.unbooked_v1(w, (e ->> 0)::int8, (e ->> 1)::int8, p.now_ns, p.lost);
  end loop;
  return w;
end $$;

-- Reads or makes the schedule that a call uses, under the numbers in force and with the reports of
-- the replica. Changes by numbers and reports are written at once.
create function outpace.schedule_v1(t outpace.target, r outpace.ask, p outpace.caller) returns outpace.schedule
language plpgsql volatile as $$
declare v outpace.schedule; stored outpace.schedule; w outpace.schedule; now_ns int8 := p.now_ns;
begin
  v := jsonb_populate_record(row(t.name, r."limit", coalesce(r.key, ''), '', 0, 0, 0, 0, 0, 0, 0,
                                 '{}', '{}', '{}', now_ns, 0)::outpace.schedule, r.spec);
  select * into stored from outpace.schedule s
   where s.target = v.target and s.limit_name = v.limit_name and s.key = v.key;
  if not found and v.key not in ('', 'overflow keys') and v.kind <> 'permits'
     and not outpace.counts_key_v1(v, r.max_keys) then
    v.key := 'overflow keys';
    select * into stored from outpace.schedule s
     where s.target = v.target and s.limit_name = v.limit_name and s.key = v.key;
  end if;
  if stored.kind is null then
    -- A new key gets no burst behind a block.
    if v.kind = 'token' and t.blocked_ns > 0 then v.mark := outpace.plus_v1(t.blocked_ns, 1, v.tolerance_ns); end if;
    insert into outpace.schedule select v.*;
    stored := v;
  end if;
  w := stored;
  if not outpace.same_spec_v1(w, v) then
    w := outpace.agreed_v1(w, v, now_ns);
  elsif now_ns > w.agreed_ns + 200000000 then
    -- Written at most a few times a second, because the row is hot.
    w.agreed_ns := now_ns;
  end if;
  if r.settles and w.kind = 'token' and cardinality(w.log_at) = 0 then
    w.used := 0; w.log_at := array[0]; w.log_units := array[w.mark];
  end if;
  if r.seen is not null or r.unbooked <> '[]' then w := outpace.reported_v1(w, r, p); end if;
  if w is distinct from stored then perform outpace.save_schedule_v1(w); end if;
  return w;
end $$;

-- Returns the runs with the positions of their schedules replaced by those in `map`.
create function outpace.mapped_v1(runs outpace.run[], map int[]) returns outpace.run[]
language plpgsql immutable as $$
declare q outpace.run;
begin
  for k in 1 .. cardinality(runs) loop
    q := runs[k];
    for y in 1 .. cardinality(q.rows) loop q.rows[y] := map[q.rows[y] + 1]; end loop;
    runs[k] := q;
  end loop;
  return runs;
end $$;

-- Returns the position among schedules of the one that all further keys of a limit share, or null.
create function outpace.shared_position_v1(ws outpace.schedule[], p_limit text) returns int
language plpgsql immutable as $$
begin
  for k in 1 .. cardinality(ws) loop
    if (ws[k]).limit_name = p_limit and (ws[k]).key = 'overflow keys' then return k; end if;
  end loop;
  return null;
end $$;

-- Returns the permits that other replicas hold. Permits outlive a crash of the server, so the
-- transaction commits synchronously.
create function outpace.held_by_others_v1(w outpace.schedule, me int8) returns int8
language plpgsql volatile as $$
begin
  perform set_config('synchronous_commit', 'on', true);
  return (select coalesce(sum(p.held), 0) from outpace.permit p
           where p.target = w.target and p.limit_name = w.limit_name and p.key = w.key and p.replica <> me);
end $$;

-- Reads the state that a call needs, and opens its runs, so that their flows compete. A single run
-- without flows of other replicas needs no competition.
create function outpace.batch_v1(p outpace.caller, rows outpace.ask[], runs outpace.run[], t outpace.target)
returns outpace.batch language plpgsql volatile as $$
declare
  r outpace.ask; q outpace.run; w outpace.schedule; n int := cardinality(runs);
  c outpace.contest := '(,0,0,0,{0},{0},{0},{0},{0},{0},{f},{f})'::outpace.contest;
  ws outpace.schedule[] := '{}'; cs outpace.contest[] := '{}'; held int8[] := '{}'; contested bool[] := '{}';
  is_shared bool := exists (select from outpace.flow f where f.target = t.name);
  map int[] := '{}'; same int; overflowed text[] := '{}';
begin
  -- Other replicas may have more lanes than the caller.
  if is_shared or cardinality(p.weights) > 1 then c := outpace.no_contest_v1(16); end if;
  foreach r in array rows loop
    w := outpace.schedule_v1(t, r, p); same := null;
    if w.key = 'overflow keys' then
      same := outpace.shared_position_v1(ws, w.limit_name);
      -- All keys that share the schedule use its first position, with the reports of all of them.
      if same is null then overflowed := overflowed || w.limit_name; else ws[same] := w; end if;
    end if;
    map := map || coalesce(same - 1, cardinality(ws));
    ws := ws || w; contested := contested || false;
    held := held || case when w.kind = 'permits' then r.held + outpace.held_by_others_v1(w, p.me) else 0 end;
    cs := cs || case when is_shared and same is null then outpace.contest_v1(w, c, p.me, p.now_ns) else c end;
  end loop;
  if cardinality(overflowed) > 0 then runs := outpace.mapped_v1(runs, map); end if;
  if is_shared or n > 1 then
    foreach q in array runs loop
      for y in 1 .. cardinality(q.rows) loop
        cs[q.rows[y] + 1] := outpace.opened_v1(cs[q.rows[y] + 1], q.lane, p.now_ns);
      end loop;
    end loop;
    for i in 1 .. cardinality(cs) loop contested[i] := outpace.competitors_v1(cs[i], p.now_ns) > 1; end loop;
  end if;
  return row(t, ws, cs, contested, is_shared or n > 1, held, array_fill('[]'::jsonb, array[n]),
             runs, map, overflowed)::outpace.batch;
end $$;

-- Returns true if the lane's reserve is left in each schedule of the run.
create function outpace.has_reserve_v1(p outpace.caller, ws outpace.schedule[], q outpace.run) returns bool
language plpgsql immutable as $$
declare i int; w outpace.schedule;
begin
  foreach i in array q.rows loop
    w := ws[i + 1];
    if w.kind <> 'permits' and coalesce(w.reserves[q.lane + 1], 0) > p.now_ns + p.horizon then
      return false;
    end if;
  end loop;
  return true;
end $$;

-- Returns the position in the run of a contested schedule in which the flow of the run is too far
-- ahead, or null.
create function outpace.unfair_v1(p outpace.caller, ws outpace.schedule[], cs outpace.contest[],
                                  contested bool[], q outpace.run)
returns int language plpgsql immutable as $$
declare i int;
begin
  for y in 1 .. cardinality(q.rows) loop
    i := q.rows[y] + 1;
    if contested[i] and not outpace.is_fair_v1(cs[i], q.lane, p.weights,
         outpace.interval_v1(ws[i]), p.horizon, p.now_ns) then
      return y;
    end if;
  end loop;
  return null;
end $$;

-- Returns the horizon of run `q`, which its schedule at position `held_by` holds. It is shorter if
-- another schedule of the run is faster, because a booking uses up what that one allows before it.
create function outpace.horizon_v1(p outpace.caller, ws outpace.schedule[], q outpace.run, held_by int)
returns int8 language plpgsql immutable as $$
declare slow int8; w outpace.schedule;
begin
  if held_by is null or cardinality(q.rows) = 1 then return p.horizon; end if;
  slow := outpace.plus_v1(0, outpace.interval_v1(ws[q.rows[held_by] + 1]), q.costs[held_by]);
  for y in 1 .. cardinality(q.rows) loop
    w := ws[q.rows[y] + 1];
    if w.kind <> 'permits' and outpace.plus_v1(0, outpace.interval_v1(w), q.costs[y]) < slow then
      return p.near;
    end if;
  end loop;
  return p.horizon;
end $$;

-- Returns the instant at which the next call of a held run is useful: one horizon before the turn
-- of its flow, but not sooner than most of a horizon and not later than about a second from now.
create function outpace.ask_again_v1(p outpace.caller, w outpace.schedule, c outpace.contest, lane int,
                                     at int8, horizon int8)
returns int8 language plpgsql stable as $$
declare flows int8 := 0;
begin
  if w.kind is not null then
    at := outpace.plus_v1(at, outpace.interval_v1(w), outpace.rank_v1(w, c, lane, p.me, p.now_ns));
    flows := greatest(outpace.competitors_v1(c, p.now_ns), 1);
  end if;
  return least(greatest(at - (horizon + p.lead), p.now_ns + horizon / 8 * 5),
               p.now_ns + 1000000000 + flows * 1000000);
end $$;

-- Decides if the next request of run `q` can be booked, not before `at`. The instant must suit all
-- its schedules. Each one accepts its own answer, so a few rounds suffice.
create function outpace.decide_v1(p outpace.caller, at int8, ws outpace.schedule[], cs outpace.contest[],
                                  contested bool[], held int8[], q outpace.run)
returns outpace.decision language plpgsql stable as $$
declare
  from_ns int8 := p.now_ns + p.lead; before int8; next int8; y int; held_by int; w outpace.schedule;
  horizon int8 := p.horizon;
  is_reserved bool := p.reserves[q.lane + 1] > 0 and outpace.has_reserve_v1(p, ws, q);
begin
  loop
    before := at;
    for y in 1 .. cardinality(q.rows) loop
      w := ws[q.rows[y] + 1];
      if w.kind = 'permits' then
        if held[q.rows[y] + 1] >= outpace.share_count_v1(w.n, p.lost) then
          return row(null::int8, false, y, p.now_ns + p.horizon / 8 * 5);
        end if;
      else
        next := outpace.earliest_v1(w, p.lost, at, q.costs[y]);
        if next > at then at := next; held_by := y; end if;
      end if;
    end loop;
    exit when at = before or at > from_ns + 1000000000000000000;
  end loop;
  if held_by is not null and cardinality(q.rows) > 1 then horizon := outpace.horizon_v1(p, ws, q, held_by); end if;
  if at > from_ns + horizon * (case when is_reserved then 2 else 1 end) then
    return row(null::int8, false, held_by, outpace.ask_again_v1(p, ws[q.rows[held_by] + 1], cs[q.rows[held_by] + 1], q.lane, at, horizon));
  end if;
  if true = any (contested) and is_reserved is not true then
    y := outpace.unfair_v1(p, ws, cs, contested, q);
    if y is not null then return row(null::int8, false, y, p.now_ns + p.horizon / 8 * 5); end if;
  end if;
  return row(at, is_reserved, null::int, null::int8);
end $$;

-- Returns the schedule after one request of `lane` used up a part of the lane's reserve.
create function outpace.reserved_v1(w outpace.schedule, p outpace.caller, lane int, cost int8)
returns outpace.schedule language plpgsql immutable as $$
declare interval_ns int8;
begin
  interval_ns := least(trunc(outpace.interval_v1(w)::numeric * 1000000 / p.reserves[lane + 1]), 9223372036854775807);
  while cardinality(w.reserves) <= lane loop w.reserves := w.reserves || 0::int8; end loop;
  w.reserves[lane + 1] := outpace.plus_v1(greatest(w.reserves[lane + 1], p.now_ns), interval_ns, cost);
  return w;
end $$;

-- Returns the reason for missing slots of a run, with the requests that compete for them.
create function outpace.short_v1(p outpace.caller, cs outpace.contest[], q outpace.run, d outpace.decision)
returns jsonb language plpgsql immutable as $$
declare c outpace.contest := cs[q.rows[d.held_by] + 1];
begin
  return jsonb_build_object('held_by', d.held_by - 1, 'ask_again', d.ask_again, 'waiting', coalesce(c.waiting, 0),
    'units', coalesce(c.units, 0), 'weight', case when c.waiting > 0 then outpace.crowd_weight_v1(c, q.lane, p.weights, p.now_ns) else 0 end);
end $$;

-- Returns the target after a booking at `at`. The first one after a block is the probe, and the
-- next one may follow after 2 s without an answer.
create function outpace.probed_v1(t outpace.target, at int8) returns outpace.target
language plpgsql immutable as $$
begin
  if t.phase = 1 then t.phase := 2; t.rest_ns := at + 2000000000; else t.phase := 0; end if;
  return t;
end $$;

-- Closes run `q`, which can book no more. If decision `d` says that a schedule holds it, its flow
-- waits there with `left_over` requests.
create function outpace.closed_run_v1(p outpace.caller, cs outpace.contest[], contested bool[], q outpace.run,
                                      d outpace.decision, left_over int8)
returns outpace.contest[] language plpgsql immutable as $$
declare i int;
begin
  for y in 1 .. cardinality(q.rows) loop
    i := q.rows[y] + 1;
    cs[i] := outpace.closed_v1(cs[i], q.lane, contested[i], case when y = d.held_by then left_over end,
                               coalesce(q.expected[y], q.costs[y]), d.ask_again, p.now_ns);
  end loop;
  return cs;
end $$;

-- Books one request per lane in turn, until no lane can book any more. Within a lane the runs follow
-- in order, and a run that is held lets the next one try.
create function outpace.allocated_v1(p outpace.caller, b outpace.batch)
returns outpace.batch language plpgsql stable as $$
declare
  runs outpace.run[] := b.runs;
  ws outpace.schedule[] := b.schedules; cs outpace.contest[] := b.contests; held int8[] := b.held;
  t outpace.target := b.target; q outpace.run; d outpace.decision; i int; j int; booked bool;
  lanes int[] := '{}'; next int[] := '{}'; got int[] := array_fill(0, array[cardinality(runs)]);
  probes bool[] := array_fill(false, array[cardinality(runs)]);
begin
  for j in 1 .. cardinality(runs) loop
    if not (runs[j]).lane = any (lanes) then lanes := lanes || (runs[j]).lane; next := next || j; end if;
  end loop;
  loop
    booked := false;
    for k in 1 .. cardinality(lanes) loop
      while next[k] <= cardinality(runs) loop
        j := next[k]; q := runs[j]; d := null;
        if q.lane = lanes[k] and got[j] < q.want then
          -- The block of the target and the quiet time after a restart of the server come first.
          d := outpace.decide_v1(p, greatest(p.now_ns + p.lead, t.quiet_ns, case t.phase when 1 then t.blocked_ns
            when 2 then t.rest_ns end), ws, cs, b.contested, held, q);
        end if;
        if d.at is not null then
          for y in 1 .. cardinality(q.rows) loop
            i := q.rows[y] + 1;
            if (ws[i]).kind = 'permits' then held[i] := held[i] + 1; continue; end if;
            ws[i] := outpace.booked_v1(ws[i], p.lost, d.at, q.costs[y]);
            if d.reserved then
              ws[i] := outpace.reserved_v1(ws[i], p, q.lane, q.costs[y]);
            else
              cs[i] := outpace.charged_v1(cs[i], q.lane, q.costs[y], coalesce(p.weights[q.lane + 1], 1));
            end if;
          end loop;
          if t.phase > 0 then
            probes[j] := probes[j] or (t.phase = 1 and got[j] = 0); t := outpace.probed_v1(t, d.at);
          end if;
          b.grants[j] := b.grants[j] || to_jsonb(d.at); got[j] := got[j] + 1; booked := true;
          exit;
        end if;
        next[k] := j + 1;
        continue when q.lane <> lanes[k];
        b.grants[j] := jsonb_build_object('slots', b.grants[j], 'probe', probes[j],
          'short', case when d.ask_again is not null then outpace.short_v1(p, cs, q, d) end);
        if b.is_open or d.held_by is not null then
          cs := outpace.closed_run_v1(p, cs, b.contested, q, d, greatest(q.waiting - got[j], 1));
        end if;
      end loop;
    end loop;
    exit when not booked;
  end loop;
  b.schedules := ws; b.contests := cs; b.held := held; b.target := t;
  return b;
end $$;

-- Writes what the batch `b` changed since it was read as `a`. `rows` are the reports of the caller.
create function outpace.save_v1(p outpace.caller, rows outpace.ask[], a outpace.batch, b outpace.batch) returns void
language plpgsql volatile as $$
declare w outpace.schedule; own int8;
begin
  for i in 1 .. cardinality(b.schedules) loop
    w := b.schedules[i];
    if w.kind = 'permits' then
      own := (rows[i]).held + b.held[i] - a.held[i];
      if own > 0 then
        insert into outpace.permit values (w.target, w.limit_name, w.key, p.me, own)
          on conflict on constraint permit_pkey do update set held = excluded.held where permit.held <> excluded.held;
      else
        delete from outpace.permit s
         where s.target = w.target and s.limit_name = w.limit_name and s.key = w.key and s.replica = p.me;
      end if;
    elsif w is distinct from a.schedules[i] then
      perform outpace.save_schedule_v1(w);
    end if;
    if true = any ((b.contests[i]).stored) then perform outpace.save_contest_v1(w, b.contests[i], p.me); end if;
  end loop;
  if (b.target).phase <> (a.target).phase or p.now_ns > (a.target).clock_ns + p.horizon then
    update outpace.target set clock_ns = p.now_ns, phase = (b.target).phase, rest_ns = (b.target).rest_ns
     where name = (b.target).name;
  end if;
end $$;

-- Executes one call.
create function outpace.book_v1(call jsonb) returns jsonb language plpgsql volatile as $$
declare
  c outpace.call := jsonb_populate_record(null::outpace.call, call);
  p outpace.caller; t outpace.target; a outpace.batch; b outpace.batch; now_ns int8;
begin
  if not outpace.lock_v1(c.target, c.queue_for_lock) then return jsonb_build_object('busy', true); end if;
  perform set_config('synchronous_commit', 'off', true);
  t := outpace.target_v1(c.target);
  now_ns := greatest(outpace.clock_v1(), t.clock_ns);
  p := row(c.replica, now_ns, c.horizon, least(c.near, c.horizon), c.lead, outpace.lost_v1(c.replica, now_ns), c.weights, c.reserves);
  a := outpace.batch_v1(p, c.rows, c.runs, t);
  b := outpace.allocated_v1(p, a);
  perform outpace.save_v1(p, c.rows, a, b);
  if cardinality(b.overflowed) > 0 then
    for k in 1 .. cardinality(b.map) loop b.schedules[k] := b.schedules[b.map[k] + 1]; end loop;
  end if;
  return jsonb_build_object('now', p.now_ns, 'lost', p.lost, 'started', t.server_ns, 'epoch', t.epoch,
    'blocked', t.blocked_ns, 'rows', to_jsonb(b.schedules), 'runs', to_jsonb(b.grants),
    'overflowed', to_jsonb(b.overflowed));
end $$;

-- Executes most of `book_v1` and rolls it back. Without this warm-up a new connection needs ten times
-- as long for its first calls, while other calls wait for the lock.
create function outpace.warm_v1() returns void language plpgsql volatile as $$
declare
  plain constant jsonb := '{"limit": "a", "key": null, "held": 0, "seen": null, "unbooked": [],
    "spec": {"kind": "token", "interval_ns": 10000000, "tolerance_ns": 0, "period_ns": 1000000000}}';
  rows  constant jsonb := jsonb_build_array(plain,
    plain || '{"limit": "b", "spec": {"kind": "sliding", "n": 100, "period_ns": 1000000000}}',
    plain || '{"limit": "c", "spec": {"kind": "fixed", "n": 100, "period_ns": 1000000000, "guard_ns": 0}}',
    plain || '{"limit": "d", "spec": {"kind": "permits", "n": 3}}');
  run   constant jsonb := '{"rows": [0], "costs": [1], "lane": 0, "want": 1, "waiting": 1}';
  base  jsonb := jsonb_build_object('horizon', 20000000, 'near', 20000000, 'lead', 0, 'queue_for_lock', false,
    'weights', '[1]'::jsonb, 'reserves', '[0]'::jsonb);
  own   text := 'outpace ' || pg_backend_pid();  -- a target name that only this connection uses
begin
  for i in 1 .. 3 loop
    perform outpace.book_v1(base || jsonb_build_object('target', own || ' plain', 'replica', -1,
      'rows', jsonb_build_array(plain), 'runs', jsonb_build_array(run)));
    for me in 1 .. 2 loop
      perform outpace.book_v1(base || jsonb_build_object('target', own, 'replica', -me, 'rows', rows,
        'runs', jsonb_build_array(run || '{"want": 9, "waiting": 9}',
                                  run || '{"rows": [0, 1, 2, 3], "costs": [1, 1, 1, 1]}')));
    end loop;
  end loop;
  raise exception using errcode = 'OPWRM', message = 'the warm-up is rolled back';
exception when sqlstate 'OPWRM' then
  perform set_config('synchronous_commit', 'off', true);  -- nothing was written
end $$;
