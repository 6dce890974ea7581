-- Reports of replicas besides their bookings: heartbeats, blocks, corrections, pins.

-- Returns the part of every rate that is reserved for silent replicas, in millionths.
create function outpace.lost_v1(p_replica int8, t int8) returns int8 language plpgsql stable as $$
begin
  return (select least(coalesce(sum(share_ppm), 0), 1000000) from outpace.replica
           where id <> p_replica and silent_ns < t and reserved_until_ns > t);
end $$;

-- Blocks a target until `p_until`, because its origin asked for a pause, and notifies all
-- replicas. Returns the number of blocks that the target has had.
create function outpace.block_v1(p_target text, p_until int8) returns int8 language plpgsql volatile as $$
declare t outpace.target;
begin
  perform pg_advisory_xact_lock(hashtextextended('outpace.' || p_target, 0));
  perform set_config('synchronous_commit', 'on', true);
  insert into outpace.target (name, server_ns) values (p_target, outpace.started_v1()) on conflict do nothing;
  select * into t from outpace.target where name = p_target;
  -- Many late refusals count as one event, so only a block with a later end is new.
  if p_until <= greatest(outpace.clock_v1(), t.clock_ns) or p_until <= t.blocked_ns then return t.epoch; end if;
  update outpace.target set blocked_ns = p_until, phase = 1, epoch = t.epoch + 1 where name = p_target;
  perform outpace.save_schedule_v1(outpace.raised_v1(s, p_until, outpace.plus_v1(p_until, 1, s.tolerance_ns)))
     from outpace.schedule s where s.target = p_target and s.kind = 'token';
  perform pg_notify('outpace', p_target);
  return t.epoch + 1;
end $$;

-- Records the outcome of the probe after block number `p_epoch`, which is answered or was never
-- sent.
create function outpace.probe_v1(p_target text, p_epoch int8, p_answered bool) returns void
language plpgsql volatile as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('outpace.' || p_target, 0));
  update outpace.target set phase = case when p_answered then 0 else 1 end
   where name = p_target and epoch = p_epoch and phase = 2;
  if found then perform pg_notify('outpace', p_target); end if;
end $$;

-- Adds `p_units` to the cost that was booked at `p_booked` or before. The number is negative if a
-- request cost less than its estimate. It is known to have used `p_used` more.
create function outpace.correct_v1(p_target text, p_limit text, p_key text, p_units int8, p_used int8, p_booked int8)
returns void language plpgsql volatile as $$
declare w outpace.schedule; now_ns int8;
begin
  perform pg_advisory_xact_lock(hashtextextended('outpace.' || p_target, 0));
  perform set_config('synchronous_commit', 'off', true);
  select * into w from outpace.schedule s
   where s.target = p_target and s.limit_name = p_limit and s.key in (p_key, 'overflow keys')
     and (p_key <> '' or s.key = '')
   order by s.key = p_key desc limit 1;
  if not found then return; end if;
  select greatest(outpace.clock_v1(), clock_ns) into now_ns from outpace.target where name = p_target;
  perform outpace.save_schedule_v1(outpace.corrected_v1(w, p_units, p_used, p_booked, now_ns));
end $$;

-- Returns the secret for the digests of secret keys. Without one, `p_candidate` becomes the secret.
create function outpace.key_secret_v1(p_candidate text) returns text language plpgsql volatile as $$
begin
  insert into outpace.key_secret (secret)
    select p_candidate where not exists (select from outpace.key_secret) on conflict do nothing;
  return (select secret from outpace.key_secret);
end $$;

-- Forgets the waiting requests of a replica, because none waits any more.
create function outpace.withdraw_v1(p_target text, p_replica int8) returns void language plpgsql volatile as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('outpace.' || p_target, 0));
  perform set_config('synchronous_commit', 'off', true);
  update outpace.flow set waiting = 0, units = 0
   where target = p_target and replica = p_replica and waiting > 0;
end $$;

-- Forgets what settlements added to the estimates of a limit, for one key or for all keys if
-- `p_key` is null. Replicas are notified at once.
create function outpace.forget_settled_v1(p_target text, p_limit text, p_key text) returns void
language plpgsql volatile as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('outpace.' || p_target, 0));
  perform set_config('synchronous_commit', 'on', true);
  perform outpace.save_schedule_v1(outpace.unsettled_v1(s)) from outpace.schedule s
   where s.target = p_target and s.limit_name = p_limit and (p_key is null or s.key = p_key);
  update outpace.target
     set cleared = cleared || jsonb_build_object(p_limit, coalesce((cleared ->> p_limit)::int8, 0) + 1)
   where name = p_target;
  perform pg_notify('outpace', p_target);
end $$;

-- Returns the blocks of all targets and the pins of operators, for the reply to a heartbeat.
create function outpace.news_v1() returns jsonb language plpgsql stable as $$
begin
  return jsonb_build_object(
    'epochs', (select coalesce(jsonb_object_agg(name, epoch), '{}') from outpace.target),
    'blocks', (select coalesce(jsonb_object_agg(name, blocks), '{}') from outpace.target where blocks > 0),
    'cleared', (select coalesce(jsonb_object_agg(name, cleared), '{}') from outpace.target
                 where cleared <> '{}'),
    'pins', (select coalesce(jsonb_agg(jsonb_build_object('target', target, 'limit', limit_name, 'spec', spec)), '[]')
               from outpace.pin));
end $$;

-- Returns the row of a replica for operators and for other replicas.
create function outpace.replica_json_v1(r outpace.replica) returns jsonb language plpgsql stable as $$
begin
  return jsonb_build_object('id', r.id, 'name', r.name, 'version', r.version, 'config', r.config, 'mode', r.mode,
    'waiting', r.waiting, 'seen', r.seen_ns, 'silent', r.silent_ns, 'reserved_until', r.reserved_until_ns,
    'share', r.share_ppm);
end $$;

-- Returns all replicas, including those that are silent and still have a reserved share.
create function outpace.replicas_v1() returns jsonb language plpgsql stable as $$
declare now_ns int8 := outpace.clock_v1();
begin
  return jsonb_build_object('now', now_ns, 'replicas', (
    select coalesce(jsonb_agg(outpace.replica_json_v1(r) order by r.name, r.id), '[]') from outpace.replica r
     where r.reserved_until_ns > now_ns));
end $$;

-- Returns the waiting requests of other replicas than `p_replica`, by flow: their units, and those that
-- the flow may book before the flow of `p_replica` has booked as much. Of equal virtual times, that of
-- the first replica comes first. A flow that begins to compete begins with the slowest one.
create function outpace.waiting_v1(flows outpace.flow[], p_replica int8) returns jsonb
language plpgsql immutable as $$
declare own int8;
begin
  select coalesce(max(virtual_time) filter (where replica = p_replica),
                  min(virtual_time) filter (where replica <> p_replica)) into own from unnest(flows);
  return (select jsonb_agg(jsonb_build_object('units', f.units, 'behind',
      floor((own - f.virtual_time - (f.replica > p_replica)::int) / (1000000.0 * u.users))::int8))
    from unnest(flows) f
    join (select lane, count(*) users from unnest(flows) group by lane) u using (lane)
   where f.replica <> p_replica);
end $$;

-- Returns the schedules of a target in `p_rows`, each with the requests of other replicas than
-- `p_replica` that wait for it, by flow. Nothing is booked.
create function outpace.peek_v1(p_target text, p_rows jsonb, p_replica int8) returns jsonb
language plpgsql stable as $$
declare now_ns int8;
begin
  select greatest(outpace.clock_v1(), clock_ns) into now_ns from outpace.target where name = p_target;
  return jsonb_build_object('lost', outpace.lost_v1(p_replica, outpace.clock_v1()), 'rows', (
    select coalesce(jsonb_agg(jsonb_build_object('limit', q."limit", 'key', q.key,
             'state', case when s.target is not null then to_jsonb(s) end,
             'waiting', coalesce(f.waiting, '[]'))), '[]')
      from jsonb_to_recordset(p_rows) q("limit" text, key text)
      left join outpace.schedule s
        on s.target = p_target and s.limit_name = q."limit" and s.key = coalesce(q.key, '')
      left join lateral (
        select outpace.waiting_v1(array_agg(w), p_replica) waiting from outpace.flow w
         where w.target = p_target and w.limit_name = q."limit" and w.key = coalesce(q.key, '')
           and w.waiting > 0 and w.due_ns + outpace.linger_v1() > now_ns) f on true));
end $$;

-- Returns what a heartbeat of replica `p_id` at `t` reports of the others: the silent ones, at most
-- 100, the part of every rate that is reserved for them, and the number of policies in force.
create function outpace.fleet_v1(p_id int8, t int8) returns jsonb language plpgsql stable as $$
begin
  return jsonb_build_object('lost', outpace.lost_v1(p_id, t),
    'configs', (select count(distinct config) from outpace.replica where silent_ns >= t),
    'peers', (select coalesce(jsonb_agg(outpace.replica_json_v1(r)), '[]') from (
      select * from outpace.replica where id <> p_id and silent_ns < t and reserved_until_ns > t
       order by id limit 100) r));
end $$;

-- Stores a heartbeat and returns the reply, or null if the lock is taken. Each live replica gets
-- a fallback share of every rate, which it may use while it is disconnected. All fallback shares
-- together never exceed the whole rate. `p_held` is the fallback share that the replica last
-- received. A lower share takes effect only after the replica has received it, because replies
-- get lost. `p_report` is a `ReplicaReport` of src/ledger/fleet.rs.
create function outpace.heartbeat_v1(p_id int8, p_name text, p_report jsonb, p_share_for int8, p_held int8)
returns jsonb language plpgsql volatile as $$
declare now_ns int8; live int8; others int8; share int8; every int8; silent int8; reserved int8;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('outpace replicas', 0)) then return null; end if;
  now_ns := outpace.clock_v1();
  delete from outpace.replica where reserved_until_ns < now_ns and id <> p_id;
  select count(*) + 1, coalesce(sum(share_ppm), 0) into live, others from outpace.replica where id <> p_id;
  share := least(1000000 / live, greatest(1000000 - others, 0));
  select least(share_ppm, p_held) into reserved from outpace.replica where id = p_id;
  every := greatest(500000000, live * 2000000); silent := 4 * every;
  insert into outpace.replica
    values (p_id, p_name, p_report->>'version', p_report->>'config', p_report->>'mode', p_report->'waiting', now_ns,
            now_ns + silent, now_ns + silent + p_share_for, greatest(share, coalesce(reserved, 0)))
    on conflict (id) do update set name = excluded.name, version = excluded.version, config = excluded.config,
      mode = excluded.mode, waiting = excluded.waiting, seen_ns = excluded.seen_ns,
      silent_ns = excluded.silent_ns, reserved_until_ns = excluded.reserved_until_ns, share_ppm = excluded.share_ppm;
  return outpace.news_v1() || outpace.fleet_v1(p_id, now_ns) || jsonb_build_object('now', now_ns, 'live', live,
    'share', share, 'every', every, 'silent', silent, 'started', outpace.started_v1());
end $$;

-- Pins a limit's numbers for all replicas, or removes the pin if `p_spec` is null. Replicas are
-- notified at once.
create function outpace.pin_v1(p_target text, p_limit text, p_spec jsonb) returns void
language plpgsql volatile as $$
begin
  if p_spec is null then
    delete from outpace.pin where target = p_target and limit_name = p_limit;
  else
    insert into outpace.pin values (p_target, p_limit, p_spec)
      on conflict (target, limit_name) do update set spec = excluded.spec;
  end if;
  perform pg_notify('outpace', p_target);
end $$;

-- Removes a replica after a clean exit, so that its fallback share and its permits are free at
-- once.
create function outpace.leave_v1(p_id int8) returns void language plpgsql volatile as $$
begin
  delete from outpace.replica where id = p_id;
  delete from outpace.permit where replica = p_id;
  delete from outpace.flow where replica = p_id;
end $$;

-- Removes idle keys, old flows and permits of replicas that are gone.
create function outpace.sweep_v1() returns void language plpgsql volatile as $$
declare now_ns int8 := outpace.clock_v1(); minute constant int8 := 60000000000;
begin
  perform set_config('synchronous_commit', 'off', true);
  delete from outpace.flow where due_ns + minute < now_ns;
  delete from outpace.permit p where not exists (select from outpace.replica r where r.id = p.replica);
  delete from outpace.schedule s where s.key <> '' and s.agreed_ns + minute < now_ns
     and case s.kind
           when 'token' then s.mark <= now_ns
           when 'sliding' then greatest(s.log_at[cardinality(s.log_at)], s.mark) + s.period_ns <= now_ns
           when 'fixed' then (s.mark + 1) * s.period_ns <= now_ns
           else not exists (select from outpace.permit p
                             where (p.target, p.limit_name, p.key) = (s.target, s.limit_name, s.key))
         end;
end $$;

-- Counts the keys of each limit anew after a sweep. It is a call of its own, because a booking holds
-- the lock of a count while it waits for the lock of a schedule.
create function outpace.count_keys_v1() returns void language plpgsql volatile as $$
begin
  perform set_config('synchronous_commit', 'off', true);
  update outpace.key_count c set live = s.live from (
    select k.target, k.limit_name, (select count(*) from outpace.schedule s
      where s.target = k.target and s.limit_name = k.limit_name and s.key not in ('', 'overflow keys')
        and s.kind <> 'permits') live
      from outpace.key_count k) s
   where c.target = s.target and c.limit_name = s.limit_name and c.live <> s.live;
end $$;
