-- Books the slots that one replica asks for one target, as far as its schedules allow them. A
-- call is one round trip and one transaction. The argument and the result are `Call` and `Answer`
-- of src/ledger/call.rs.
--
-- A call does not wait for a lock, except for up to 20 ms if the caller asks for it. Waiters slow
-- a hot row down, so the caller tries again later.
create function outpace.book_v1(call jsonb) returns jsonb language plpgsql volatile as $$
#variable_conflict use_variable
declare
  scale   constant int8 := 1000000;         -- virtual time of one unit at weight 1
  linger  constant int8 := 500000000;       -- time for which an overdue flow still counts
  agree   constant int8 := 800000000;       -- time until looser numbers are adopted
  probing constant int8 := 2000000000;      -- maximum wait for the response to a probe
  quiet   constant int8 := 2000000000;      -- time without bookings after a server start
  ask_max constant int8 := 1000000000;      -- maximum time until a replica asks again, plus
  ask_each constant int8 := 1000000;        -- this time per competing flow
  n_lanes   int;                            -- lanes of the call, or 16 if any flow is stored

  p_target  text := call ->> 'target';
  me        int8 := (call ->> 'replica')::int8;
  horizon   int8 := (call ->> 'horizon')::int8;
  lead      int8 := (call ->> 'lead')::int8;
  pause     int8 := horizon / 8 * 5;        -- minimum time until a held replica asks again
  p_rows    jsonb := call -> 'rows';
  p_runs    jsonb := call -> 'runs';
  n_rows    int := jsonb_array_length(p_rows);
  n_runs    int := jsonb_array_length(p_runs);
  lane_w    int8[] := '{}';                 -- weight of each lane
  lane_r    int8[] := '{}';                 -- reserve of each lane, in millionths

  t         outpace.target;
  now_ns    int8;
  started   int8 := outpace.started_v1();
  lost      int8;
  was_phase int2; dirty bool := false;
  w         outpace.schedule;
  v         outpace.schedule;
  ws        outpace.schedule[] := '{}';     -- the rows of the call
  olds      outpace.schedule[] := '{}';     -- the same rows before the call
  r         jsonb; bound jsonb; spec jsonb;
  kind      text; a int8; b int8; c int8;
  held_all  int8[] := '{}'; held_own int8[] := '{}'; held_new int8[] := '{}';
  -- Flows. By row: the lowest virtual time and the waiting requests of other replicas. By row and
  -- lane: the number of flows of other replicas, and the flow of this replica.
  o_slow    int8[] := '{}'; o_wait int8[] := '{}'; o_count int8[] := '{}';
  o_users   int8[]; f_vt int8[]; f_wait int8[]; f_due int8[];
  f_open    int[]; f_kept bool[]; f_known bool[];
  fl        record;
  slow      int8; x int; y int; z int; i int; j int; k int;
  current_run int;
  -- Runs of the call, with their slots and the reasons for missing ones.
  run_rows  int[]; costs int8[]; lane int; want int;
  q_rows    jsonb[] := '{}'; q_lane int[] := '{}'; q_want int[] := '{}'; q_wait int8[] := '{}';
  slots     jsonb[] := '{}'; got int[] := '{}'; shorts jsonb[] := '{}'; probes bool[] := '{}';
  contested bool[] := '{}';
  lane_seen int[] := '{}'; cursor_at int[] := '{}';
  booked    bool; at int8; nxt int8; prev int8; from_ns int8; held_by int; ask int8; reserved bool; unfair int;
  weights   int8; lead_vt int8; users int8; crowd int8; crowd_w int8; own_w int8; rank int8; others int8; interval_ns int8;
  turn      int8; is_probe bool; left_over int8; out_runs jsonb := '[]'; out_rows jsonb := '[]';
begin
  if not pg_try_advisory_xact_lock(hashtextextended('outpace.' || p_target, 0)) then
    -- A short wait in line prevents starvation, which random attempts do not. With many replicas
    -- no call waits, because a longer line makes it slower to pass the lock on.
    if not coalesce((call ->> 'queue_for_lock')::bool, false) then
      return jsonb_build_object('busy', true);
    end if;
    begin
      perform set_config('lock_timeout', '20ms', true);
      perform pg_advisory_xact_lock(hashtextextended('outpace.' || p_target, 0));
    exception when lock_not_available then
      return jsonb_build_object('busy', true);
    end;
    perform set_config('lock_timeout', '0', true);
  end if;
  perform set_config('synchronous_commit', 'off', true);
  select * into t from outpace.target where name = p_target;
  if not found then
    insert into outpace.target (name, server_ns) values (p_target, started) returning * into t;
  end if;
  now_ns := greatest(outpace.clock_v1(), t.clock_ns);
  if t.server_ns <> started then
    -- The server has restarted, or is not the one that wrote this row, so writes may be lost. All
    -- replicas report their last known state before anything is booked.
    t.server_ns := started; t.quiet_ns := now_ns + quiet; dirty := true;
  end if;
  for k in 0 .. jsonb_array_length(call -> 'lanes') - 1 loop
    lane_w := lane_w || greatest((call -> 'lanes' -> k ->> 0)::int8, 1);
    lane_r := lane_r || (call -> 'lanes' -> k ->> 1)::int8;
  end loop;
  lost := outpace.lost_v1(me, now_ns);
  n_lanes := greatest(cardinality(lane_w), 1);
  if exists (select from outpace.flow f where f.target = p_target) then n_lanes := 16; end if;
  was_phase := t.phase;

  -- The fast path serves requests of one kind in one token bucket with unchanged numbers. No flow
  -- competes, and all requests get a slot. The result equals that of the full path, but the lock
  -- is held for a fraction of the time.
  if n_rows = 1 and n_runs = 1 and not dirty and lost = 0 and t.phase = 0 and t.quiet_ns <= now_ns then
    r := p_rows -> 0; spec := r -> 'bound' -> 'rate' -> 'numbers'; lane := (p_runs -> 0 ->> 'lane')::int;
    want := (p_runs -> 0 ->> 'want')::int; x := (p_runs -> 0 -> 'costs' ->> 0)::int;
    a := (spec ->> 0)::int8; b := (spec ->> 1)::int8; c := (spec ->> 2)::int8;
    select * into w from outpace.schedule s
     where s.target = p_target and s.limit_name = r ->> 'limit' and s.key = coalesce(r ->> 'key', '');
    if found and (w.kind, w.a, w.b, w.c) = (r -> 'bound' -> 'rate' ->> 'kind', a, b, c) and w.kind = 'token'
       and jsonb_array_length(r -> 'spent') = 0 and coalesce(lane_r[lane + 1], 0) = 0
       and x between 1 and 1000000 and a <= 1000000000000
       and not exists (select from outpace.flow f where f.target = p_target and f.due_ns + linger > now_ns) then
      prev := w.mark; from_ns := now_ns + lead;
      if r -> 'seen' -> 0 ->> 'kind' = 'token' then prev := greatest(prev, (r -> 'seen' -> 1 ->> 'mark')::int8); end if;
      out_runs := '[]';
      for k in 1 .. want loop
        at := greatest(from_ns, greatest(prev, from_ns) + a * (least(x, b / a + 1) - 1) - b);
        exit when at > from_ns + horizon;
        prev := greatest(prev, at) + a * x;
        out_runs := out_runs || to_jsonb(at); y := k;
      end loop;
      if y = want then
        if now_ns > w.agreed_ns + agree / 4 then w.agreed_ns := now_ns; end if;
        update outpace.schedule s set mark = prev, agreed_ns = w.agreed_ns
         where s.target = p_target and s.limit_name = w.limit_name and s.key = w.key;
        if now_ns > t.clock_ns + horizon then
          update outpace.target set clock_ns = now_ns where name = p_target;
        end if;
        return jsonb_build_object('now', now_ns, 'epoch', t.epoch, 'blocked', t.blocked_ns, 'lost', 0, 'started', started,
          'rows', jsonb_build_array(jsonb_build_object(
            'spec', jsonb_build_object('kind', 'token', 'numbers', jsonb_build_array(a, b, c)),
            'usage', jsonb_build_object('mark', prev, 'used', 0, 'log', '[]'::jsonb))),
          'runs', jsonb_build_array(jsonb_build_object('slots', out_runs, 'probe', false, 'short', null)));
      end if;
      out_runs := '[]'; at := null;
    end if;
  end if;

  -- Reads the rows and applies the strictest numbers of all live replicas.
  o_users := array_fill(0::int8, array[greatest(n_rows, 1) * n_lanes]);
  f_vt := o_users; f_wait := o_users; f_due := o_users;
  f_open := array_fill(0, array[greatest(n_rows, 1) * n_lanes]);
  f_kept := array_fill(false, array[greatest(n_rows, 1) * n_lanes]); f_known := f_kept;
  for i in 1 .. n_rows loop
    r := p_rows -> (i - 1); bound := r -> 'bound';
    if bound ? 'rate' then
      spec := bound -> 'rate' -> 'numbers'; kind := bound -> 'rate' ->> 'kind';
      a := (spec ->> 0)::int8; b := (spec ->> 1)::int8; c := (spec ->> 2)::int8;
    else
      kind := 'permits'; a := (bound ->> 'permits')::int8; b := 0; c := 0;
    end if;
    select * into w from outpace.schedule s
     where s.target = p_target and s.limit_name = r ->> 'limit' and s.key = coalesce(r ->> 'key', '');
    if not found then
      w := row(p_target, r ->> 'limit', coalesce(r ->> 'key', ''), kind, a, b, c, 0, 0, '{}', '{}', '{}', now_ns);
      if kind = 'token' and t.blocked_ns > 0 then w.mark := t.blocked_ns + b; end if;
      insert into outpace.schedule select w.*;
    end if;
    olds := olds || w;
    if (w.kind, w.a, w.b, w.c) = (kind, a, b, c) then
      -- The instant is written at most five times per second, because the row is hot enough.
      if now_ns > w.agreed_ns + agree / 4 then w.agreed_ns := now_ns; end if;
    elsif outpace.stricter_v1(kind, a, b, w.kind, w.a, w.b) or now_ns > w.agreed_ns + agree then
      if kind = 'permits' and w.kind <> 'permits' then
        delete from outpace.permit p where p.target = p_target and p.limit_name = w.limit_name and p.key = w.key;
      end if;
      w := outpace.adopted_v1(w, kind, a, b, c, now_ns); w.agreed_ns := now_ns;
    end if;
    if r -> 'seen' -> 0 ->> 'kind' = w.kind
       and (w.kind <> 'fixed' or (r -> 'seen' -> 0 -> 'numbers' ->> 1)::int8 = w.b) then
      w := outpace.merged_v1(w, r -> 'seen' -> 1);
    end if;
    if jsonb_array_length(r -> 'spent') > 0 then w := outpace.spent_v1(w, r -> 'spent', now_ns); end if;
    ws := ws || w;

    if w.kind = 'permits' then
      select coalesce(sum(p.held), 0) into left_over from outpace.permit p
       where p.target = p_target and p.limit_name = w.limit_name and p.key = w.key and p.replica <> me;
      held_own := held_own || (r ->> 'held')::int8;
      held_all := held_all || (left_over + (r ->> 'held')::int8);
      -- Permits must survive a crash of the server, so their commit is synchronous.
      perform set_config('synchronous_commit', 'on', true);
    else
      held_own := held_own || 0::int8; held_all := held_all || 0::int8;
    end if;
    held_new := held_new || 0::int8;

    o_slow := o_slow || null::int8; o_wait := o_wait || 0::int8; o_count := o_count || 0::int8;
    for fl in select * from outpace.flow f
       where f.target = p_target and f.limit_name = w.limit_name and f.key = w.key loop
      x := (i - 1) * n_lanes + fl.lane + 1;
      if fl.replica = me then
        f_known[x] := true; f_vt[x] := fl.virtual_time; f_due[x] := fl.due_ns;
        f_kept[x] := fl.due_ns + linger > now_ns;
      elsif fl.waiting > 0 and fl.due_ns + linger > now_ns then
        o_users[x] := o_users[x] + 1; o_count[i] := o_count[i] + 1; o_wait[i] := o_wait[i] + fl.waiting;
        o_slow[i] := least(coalesce(o_slow[i], fl.virtual_time), fl.virtual_time);
      end if;
    end loop;
  end loop;

  -- Opens the runs, so that their flows compete. A flow that was idle starts at the minimum
  -- virtual time, without credit.
  for j in 1 .. n_runs loop
    r := p_runs -> (j - 1); lane := (r ->> 'lane')::int;
    q_lane := q_lane || lane; q_want := q_want || (r ->> 'want')::int; q_wait := q_wait || (r ->> 'waiting')::int8;
    slots := slots || '[]'::jsonb; got := got || 0; shorts := shorts || null::jsonb; probes := probes || false;
    for y in 0 .. jsonb_array_length(r -> 'rows') - 1 loop
      i := (r -> 'rows' ->> y)::int + 1;
      x := (i - 1) * n_lanes + lane + 1;
      if not f_kept[x] and f_open[x] = 0 then
        slow := o_slow[i];
        for k in 0 .. n_lanes - 1 loop
          z := (i - 1) * n_lanes + k + 1;
          if k <> lane and f_open[z] > 0 then slow := least(coalesce(slow, f_vt[z]), f_vt[z]); end if;
        end loop;
        f_vt[x] := coalesce(slow, 0);
      end if;
      f_open[x] := f_open[x] + 1;
    end loop;
    if not lane = any (lane_seen) then lane_seen := lane_seen || lane; cursor_at := cursor_at || j; end if;
  end loop;

  for i in 1 .. n_rows loop
    users := case when o_slow[i] is null then 0 else 1 end;
    for k in 0 .. n_lanes - 1 loop
      if f_open[(i - 1) * n_lanes + k + 1] > 0 then users := users + 1; end if;
    end loop;
    contested := contested || (users > 1);
  end loop;

  -- Books one request per lane in turn, until no lane can book any more. Within a lane the runs
  -- follow in order, and a run that is held lets the next one try.
  from_ns := now_ns + lead;
  loop
    booked := false;
    for k in 1 .. cardinality(lane_seen) loop
      lane := lane_seen[k];
      while cursor_at[k] <= n_runs loop
        j := cursor_at[k];
        if q_lane[j] <> lane then cursor_at[k] := j + 1; continue; end if;
        if j is distinct from current_run then
          r := p_runs -> (j - 1); current_run := j; run_rows := '{}'; costs := '{}';
          for y in 0 .. jsonb_array_length(r -> 'rows') - 1 loop
            run_rows := run_rows || (r -> 'rows' ->> y)::int + 1;
            costs := costs || (r -> 'costs' ->> y)::int8;
          end loop;
        end if;
        held_by := null; ask := null; at := null;
        if got[j] < q_want[j] then
          -- Permits: the share of silent replicas is reserved in addition to the permits that
          -- they hold. Their permits may be part of the share.
          for y in 1 .. cardinality(run_rows) loop
            i := run_rows[y];
            if (ws[i]).kind = 'permits' and held_all[i] + held_new[i] >= outpace.share_count_v1((ws[i]).a, lost) then
              held_by := i; ask := now_ns + pause; exit;
            end if;
          end loop;
          if held_by is null then
            -- The earliest instant that all schedules allow, and the row that moved it last.
            at := case t.phase when 1 then greatest(from_ns, t.blocked_ns) when 2 then greatest(from_ns, t.rest_ns) else from_ns end;
            at := greatest(at, t.quiet_ns);
            loop
              prev := at;
              for y in 1 .. cardinality(run_rows) loop
                w := ws[run_rows[y]];
                continue when w.kind = 'permits';
                nxt := outpace.earliest_v1(w, lost, at, costs[y]);
                if nxt > at then at := nxt; held_by := run_rows[y]; end if;
              end loop;
              exit when at = prev or at > from_ns + 1000000000000000000;
            end loop;
            reserved := coalesce(lane_r[lane + 1], 0) > 0;
            if reserved then
              for y in 1 .. cardinality(run_rows) loop
                w := ws[run_rows[y]];
                reserved := reserved and (w.kind = 'permits' or coalesce(w.reserves[lane + 1], 0) <= now_ns + horizon);
              end loop;
            end if;
            if at > from_ns + (case when reserved then 2 * horizon else horizon end) then
              rank := 0; others := 0; interval_ns := 0;
              if held_by is not null then
                w := ws[held_by]; x := (held_by - 1) * n_lanes + lane + 1;
                interval_ns := case when w.kind = 'token' then greatest(w.a, 1) else greatest(w.b / greatest(w.a, 1), 1) end;
                select count(*) into rank from outpace.flow f
                 where f.target = p_target and f.limit_name = w.limit_name and f.key = w.key and f.replica <> me
                   and f.waiting > 0 and f.due_ns + linger > now_ns
                   and (f.virtual_time, f.lane::int, f.replica) < (f_vt[x], lane, me);
                others := o_count[held_by];
                for y in 0 .. n_lanes - 1 loop
                  i := (held_by - 1) * n_lanes + y + 1;
                  if f_open[i] > 0 or (f_wait[i] > 0 and f_due[i] + linger > now_ns) then
                    others := others + 1;
                    if y <> lane and (f_vt[i], y) < (f_vt[x], lane) then rank := rank + 1; end if;
                  end if;
                end loop;
              end if;
              turn := outpace.plus_v1(at, interval_ns, rank) - (horizon + lead);
              ask := least(greatest(turn, now_ns + pause), now_ns + ask_max + others * ask_each);
              at := null;
            elsif not reserved then
              -- No flow may run further ahead of the slowest flow than its share of one horizon.
              unfair := null;
              for y in 1 .. cardinality(run_rows) loop
                continue when not contested[run_rows[y]];
                i := run_rows[y]; w := ws[i]; x := (i - 1) * n_lanes + lane + 1;
                slow := o_slow[i]; weights := 0;
                for k2 in 0 .. n_lanes - 1 loop
                  declare z int := (i - 1) * n_lanes + k2 + 1; mine bool := f_open[z] > 0 or (f_wait[z] > 0 and f_due[z] + linger > now_ns);
                  begin
                    if mine and k2 <> lane then slow := least(coalesce(slow, f_vt[z]), f_vt[z]); end if;
                    if mine or o_users[z] > 0 then weights := weights + coalesce(lane_w[k2 + 1], 1); end if;
                  end;
                end loop;
                continue when slow is null;
                interval_ns := case when w.kind = 'permits' then 1 when w.kind = 'token' then greatest(w.a, 1) else greatest(w.b / greatest(w.a, 1), 1) end;
                lead_vt := horizon * scale / interval_ns / greatest(weights, 1);
                if not (f_vt[x] <= slow or f_vt[x] < slow + lead_vt) then unfair := i; exit; end if;
              end loop;
              if unfair is not null then held_by := unfair; ask := now_ns + pause; at := null; end if;
            end if;
          end if;
          if at is not null then
            for y in 1 .. cardinality(run_rows) loop
              i := run_rows[y]; w := ws[i]; x := (i - 1) * n_lanes + lane + 1;
              if w.kind = 'permits' then held_new[i] := held_new[i] + 1; continue; end if;
              w := outpace.booked_v1(w, lost, at, costs[y]);
              interval_ns := case when w.kind = 'token' then greatest(w.a, 1) else greatest(w.b / greatest(w.a, 1), 1) end;
              if reserved then
                while cardinality(w.reserves) <= lane loop w.reserves := w.reserves || 0::int8; end loop;
                w.reserves[lane + 1] := outpace.plus_v1(greatest(w.reserves[lane + 1], now_ns),
                  least(trunc(interval_ns::numeric * 1000000 / greatest(lane_r[lane + 1], 1)), 9223372036854775807)::int8, costs[y]);
              else
                users := greatest(o_users[x] + 1, 1);
                f_vt[x] := f_vt[x] + costs[y] * scale * users / coalesce(lane_w[lane + 1], 1);
              end if;
              ws[i] := w;
            end loop;
            is_probe := t.phase = 1;
            if t.phase = 1 then t.phase := 2; t.rest_ns := at + probing;
            elsif t.phase = 2 then t.phase := 0; end if;
            probes[j] := probes[j] or (is_probe and got[j] = 0);
            slots[j] := slots[j] || to_jsonb(at); got[j] := got[j] + 1; booked := true;
            exit;
          end if;
          -- The run is held. The answer names the row, the instant to ask again, and the
          -- competing requests.
          crowd := 0; crowd_w := 0;
          if held_by is not null then
            x := (held_by - 1) * n_lanes + lane + 1;
            own_w := coalesce(lane_w[lane + 1], 1) * scale / greatest(o_users[x] + 1, 1);
            crowd := o_wait[held_by];
            for y in 0 .. n_lanes - 1 loop
              i := (held_by - 1) * n_lanes + y + 1;
              if o_users[i] > 0 then
                users := o_users[i] + case when f_open[i] > 0 or (f_wait[i] > 0 and f_due[i] + linger > now_ns) then 1 else 0 end;
                crowd_w := crowd_w + o_users[i] * (coalesce(lane_w[y + 1], 1) * scale / users);
              end if;
            end loop;
            crowd_w := crowd_w * scale / greatest(own_w, 1);
          end if;
          shorts[j] := jsonb_build_object('held_by', held_by - 1, 'ask_again', ask, 'crowd', crowd, 'crowd_weight', crowd_w);
        end if;
        -- Closes the run. If a row holds it, its flow keeps competing there.
        left_over := greatest(q_wait[j] - got[j], 1);
        foreach i in array run_rows loop
          x := (i - 1) * n_lanes + lane + 1;
          f_open[x] := f_open[x] - 1;
          if i = held_by then
            f_wait[x] := f_wait[x] + left_over; f_due[x] := greatest(f_due[x], ask, now_ns);
          elsif contested[i] then
            f_due[x] := greatest(f_due[x], now_ns);
          end if;
          -- A flow that never had to compete leaves no row.
          f_known[x] := f_known[x] or f_wait[x] > 0 or contested[i];
        end loop;
        cursor_at[k] := j + 1;
      end loop;
    end loop;
    exit when not booked;
  end loop;

  -- Writes back only the rows that changed.
  for i in 1 .. n_rows loop
    w := ws[i]; v := olds[i];
    if w is distinct from v then
      update outpace.schedule s set kind = w.kind, a = w.a, b = w.b, c = w.c, mark = w.mark, used = w.used,
             log_at = w.log_at, log_units = w.log_units, reserves = w.reserves, agreed_ns = w.agreed_ns
       where s.target = p_target and s.limit_name = w.limit_name and s.key = w.key;
    end if;
    if w.kind = 'permits' then
      if held_own[i] + held_new[i] > 0 then
        insert into outpace.permit values (p_target, w.limit_name, w.key, me, held_own[i] + held_new[i])
          on conflict on constraint permit_pkey do update set held = excluded.held where permit.held <> excluded.held;
      else
        delete from outpace.permit p where p.target = p_target and p.limit_name = w.limit_name and p.key = w.key and p.replica = me;
      end if;
    end if;
    for y in 0 .. n_lanes - 1 loop
      x := (i - 1) * n_lanes + y + 1;
      continue when not f_known[x];
      insert into outpace.flow values (p_target, w.limit_name, w.key, y, me, f_vt[x], f_wait[x], f_due[x])
        on conflict on constraint flow_pkey do update set virtual_time = excluded.virtual_time, waiting = excluded.waiting, due_ns = excluded.due_ns;
    end loop;
    out_rows := out_rows || jsonb_build_object(
      'spec', case when w.kind <> 'permits' then jsonb_build_object('kind', w.kind, 'numbers', jsonb_build_array(w.a, w.b, w.c)) end,
      'usage', jsonb_build_object('mark', w.mark, 'used', w.used, 'log',
        case when cardinality(w.log_at) = 0 then '[]'::jsonb
             else (select jsonb_agg(jsonb_build_array(e.at, e.n) order by e.o) from unnest(w.log_at, w.log_units) with ordinality as e(at, n, o)) end));
  end loop;
  if t.phase <> was_phase or dirty or now_ns > t.clock_ns + horizon then
    update outpace.target set clock_ns = now_ns, phase = t.phase, rest_ns = t.rest_ns,
           server_ns = t.server_ns, quiet_ns = t.quiet_ns where name = p_target;
  end if;
  for j in 1 .. n_runs loop
    out_runs := out_runs || jsonb_build_object('slots', slots[j], 'probe', probes[j], 'short', shorts[j]);
  end loop;
  return jsonb_build_object('now', now_ns, 'epoch', t.epoch, 'blocked', t.blocked_ns, 'rows', out_rows,
                            'runs', out_runs, 'lost', lost, 'started', started);
end $$;

-- Runs most of `book_v1` and leaves no rows behind. Without it the first calls on a connection
-- take ten times as long, and other calls would wait for the lock during that time.
create function outpace.warm_v1() returns void language plpgsql volatile as $$
declare
  plain constant jsonb := '{"limit": "a", "key": null, "held": 0, "seen": [], "spent": [],
    "bound": {"rate": {"kind": "token", "numbers": [10000000, 0, 1000000000]}}}';
  rows  constant jsonb := jsonb_build_array(plain,
    plain || '{"limit": "b", "bound": {"rate": {"kind": "sliding", "numbers": [100, 1000000000, 0]}}}',
    plain || '{"limit": "c", "bound": {"rate": {"kind": "fixed", "numbers": [100, 1000000000, 0]}}}',
    plain || '{"limit": "d", "bound": {"permits": 3}}');
  run   constant jsonb := '{"rows": [0], "costs": [1], "lane": 0, "want": 1, "waiting": 1}';
  base  jsonb := jsonb_build_object('horizon', 20000000, 'lead', 0, 'queue_for_lock', false, 'lanes', '[[1, 0]]'::jsonb);
  own   text := 'outpace ' || pg_backend_pid();  -- a name that no other session uses
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
  perform set_config('synchronous_commit', 'off', true);  -- all changes are rolled back
end $$;
