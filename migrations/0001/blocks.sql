-- Blocks of parts of a target: one limit, one key of a limit, or one credential. An empty text stands
-- for a part that a scope lacks. The same decisions are in src/ledger/blocks.rs.

-- Records a change of the blocks of a target and notifies all replicas.
create function outpace.blocks_changed_v1(p_target text) returns void language plpgsql volatile as $$
begin
  update outpace.target set blocks = blocks + 1 where name = p_target;
  perform pg_notify('outpace', p_target);
end $$;

-- Returns the block of a call as a row.
create function outpace.block_row_v1(p_target text, b jsonb) returns outpace.block language plpgsql immutable as $$
declare s jsonb := b -> 'scope'; c jsonb := b -> 'cause';
begin
  return row(p_target, coalesce(s ->> 'limit', ''), coalesce(s ->> 'key', ''), coalesce(s ->> 'credential', ''),
    (b ->> 'since')::int8, (b ->> 'until')::int8, (b ->> 'asked')::int8, 0, (b ->> 'longer')::bool, (c ->> 'status')::int,
    c ->> 'field', c ->> 'value', c ->> 'path')::outpace.block;
end $$;

-- Adds a block, unless a later one of the same scope is stored. A refusal from before the last lift
-- adds none, because its report was on its way when the operator lifted the blocks. A second credential that is refused
-- within the block of another one widens the block. At most 10,000 blocks of a target are kept.
create function outpace.impose_block_v1(p_target text, b jsonb) returns void language plpgsql volatile as $$
declare w outpace.block := outpace.block_row_v1(p_target, b); now_ns int8 := outpace.clock_v1();
begin
  perform pg_advisory_xact_lock(hashtextextended('outpace.' || p_target, 0));
  perform set_config('synchronous_commit', 'on', true);
  if w.until_ns <= now_ns then return; end if;
  insert into outpace.target (name, server_ns) values (p_target, outpace.started_v1()) on conflict do nothing;
  if exists (select from outpace.target t where t.name = p_target and t.lifted_ns >= w.since_ns) then
    perform outpace.blocks_changed_v1(p_target);
    return;
  end if;
  if w.credential <> '' and exists (select from outpace.block o where o.target = p_target
       and o.limit_name = w.limit_name and o.key = w.key and o.credential not in ('', w.credential)
       and o.until_ns > now_ns) then
    delete from outpace.block o where o.target = p_target and o.limit_name = w.limit_name and o.key = w.key
       and o.credential <> '';
    w.credential := '';
  end if;
  insert into outpace.block select w.*
    on conflict (target, limit_name, key, credential) do update
      set since_ns = excluded.since_ns, until_ns = excluded.until_ns, asked_ns = excluded.asked_ns,
          rest_ns = 0, longer = excluded.longer, status = excluded.status, field = excluded.field, value = excluded.value, path = excluded.path
      where block.until_ns < excluded.until_ns;
  if not found then return; end if;
  delete from outpace.block o where o.target = p_target and greatest(o.until_ns, o.rest_ns) + 60000000000 < now_ns;
  delete from outpace.block o where o.target = p_target and o.ctid in (
    select i.ctid from outpace.block i where i.target = p_target order by i.until_ns desc offset 10000);
  perform outpace.blocks_changed_v1(p_target);
  if w.limit_name = '' and w.credential = '' then perform outpace.block_v1(p_target, w.until_ns); end if;
end $$;

-- Asks for permission to send a request of a blocked scope. One request of all replicas gets it per
-- block, and another one if the first stays without an answer for 2 s.
create function outpace.claim_block_v1(p_target text, s jsonb) returns jsonb language plpgsql volatile as $$
declare w outpace.block; now_ns int8 := outpace.clock_v1();
begin
  perform set_config('synchronous_commit', 'on', true);
  select * into w from outpace.block o where o.target = p_target and o.limit_name = coalesce(s ->> 'limit', '')
     and o.key = coalesce(s ->> 'key', '') and o.credential = coalesce(s ->> 'credential', '') for update;
  if not found then return '"open"'; end if;
  if greatest(w.until_ns, w.rest_ns) > now_ns then
    return jsonb_build_object('wait', greatest(w.until_ns, w.rest_ns));
  end if;
  update outpace.block o set rest_ns = now_ns + 2000000000 where o.target = w.target
     and o.limit_name = w.limit_name and o.key = w.key and o.credential = w.credential;
  return jsonb_build_object('probe', w.until_ns);
end $$;

-- Ends the probe of the block that ended at `p_until`, within 50 ms. An answered probe ends the block,
-- and after one that was never sent another request may be the probe.
create function outpace.end_block_probe_v1(p_target text, s jsonb, p_until int8, p_answered bool) returns void
language plpgsql volatile as $$
begin
  perform set_config('synchronous_commit', 'on', true);
  if p_answered then
    delete from outpace.block o where o.target = p_target and o.limit_name = coalesce(s ->> 'limit', '')
       and o.key = coalesce(s ->> 'key', '') and o.credential = coalesce(s ->> 'credential', '')
       and abs(o.until_ns - p_until) < 50000000;
  else
    update outpace.block o set rest_ns = 0 where o.target = p_target and o.limit_name = coalesce(s ->> 'limit', '')
       and o.key = coalesce(s ->> 'key', '') and o.credential = coalesce(s ->> 'credential', '')
       and abs(o.until_ns - p_until) < 50000000;
  end if;
  if found then perform outpace.blocks_changed_v1(p_target); end if;
end $$;

-- Lifts the selected blocks of a target and returns their number. A limit of null and an empty list of
-- keys select all blocks.
create function outpace.lift_blocks_v1(p_target text, p_limit text, p_keys jsonb) returns int8
language plpgsql volatile as $$
declare lifted int8; whole bool;
begin
  perform pg_advisory_xact_lock(hashtextextended('outpace.' || p_target, 0));
  perform set_config('synchronous_commit', 'on', true);
  with gone as (
    delete from outpace.block o where o.target = p_target and (p_limit is null or o.limit_name = p_limit)
       and (p_keys = '[]' or p_keys ? nullif(o.key, '') or p_keys ? nullif(o.credential, ''))
    returning o.limit_name = '' and o.credential = '' as is_whole)
  select count(*), coalesce(bool_or(is_whole), false) into lifted, whole from gone;
  if whole then
    update outpace.target set blocked_ns = least(blocked_ns, outpace.clock_v1()), phase = 0 where name = p_target;
    -- The block has drained the token buckets until its end.
    update outpace.schedule s
       set mark = now_ns + s.tolerance_ns, settled = 0, used = least(s.used, now_ns),
           log_at = case when s.log_at <> '{}' then array[now_ns] else '{}' end,
           log_units = case when s.log_at <> '{}' then array[now_ns + s.tolerance_ns] else '{}' end
      from (select outpace.clock_v1() as now_ns) c
     where s.target = p_target and s.kind = 'token' and s.mark > now_ns + s.tolerance_ns;
  end if;
  insert into outpace.target (name, server_ns, lifted_ns) values (p_target, outpace.started_v1(), outpace.clock_v1())
    on conflict (name) do update set lifted_ns = excluded.lifted_ns;
  if lifted > 0 then perform outpace.blocks_changed_v1(p_target); end if;
  return lifted;
end $$;

-- Returns all blocks of a target.
create function outpace.blocks_v1(p_target text) returns jsonb language plpgsql stable as $$
begin
  return (select coalesce(jsonb_agg(jsonb_build_object(
      'scope', jsonb_build_object('limit', nullif(o.limit_name, ''), 'key', nullif(o.key, ''),
                                  'credential', nullif(o.credential, '')),
      'since', o.since_ns, 'until', o.until_ns, 'asked', o.asked_ns, 'longer', o.longer,
      'rest', o.rest_ns,
      'cause', jsonb_build_object('status', o.status, 'field', o.field, 'value', o.value, 'path', o.path))), '[]')
    from outpace.block o where o.target = p_target);
end $$;
