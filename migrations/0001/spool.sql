-- Functions of the shared spool: pushes, leases, claims, outcomes and clean-up. src/spool/postgres calls
-- them, and docs/spool.md explains the rows.

create function outpace.millis_v1() returns int8 language sql volatile as $$
  select (extract(epoch from clock_timestamp()) * 1000)::int8
$$;

-- Adds items and bytes to the sums of buffers and clients. The arrays have one entry per item.
create function outpace.count_v1(p_buffers int8[], p_owners text[], p_bytes int8[], p_sign int4) returns void
language plpgsql volatile as $$
begin
  insert into outpace.usage as u (buffer, owner, shard, items, bytes)
  select n.buffer, n.owner, 0, p_sign * count(*), p_sign * sum(n.bytes)
    from unnest(p_buffers, p_owners, p_bytes) n(buffer, owner, bytes)
   group by n.buffer, n.owner order by n.buffer, n.owner
  on conflict (buffer, owner, shard) do update set items = u.items + excluded.items, bytes = u.bytes + excluded.bytes;
end $$;

-- Returns true if further items fit. The arrays have one entry per client, with what it adds and
-- its share, and null for no share. Pushes that are not committed yet are not counted.
create function outpace.fits_v1(
  p_owners text[], p_items int8[], p_bytes int8[], p_max_items int8[], p_max_bytes int8[], p_most int8
) returns bool language plpgsql volatile as $$
begin
  return (select coalesce(sum(u.bytes), 0) from outpace.usage u) + (select sum(b) from unnest(p_bytes) b) <= p_most
     and not exists (
       select from unnest(p_owners, p_items, p_bytes, p_max_items, p_max_bytes) n(owner, items, bytes, max_items, max_bytes)
         left join (select u.owner, sum(u.items) as items, sum(u.bytes) as bytes from outpace.usage u
                     where u.owner = any (p_owners) group by u.owner) k on k.owner = n.owner
        where coalesce(k.items, 0) + n.items > n.max_items or coalesce(k.bytes, 0) + n.bytes > n.max_bytes);
end $$;

-- Stores a batch of pushes. Each push has one or more items for one buffer and an optional key,
-- and no key occurs twice. Push n goes to buffer p_buffers[p_of[n]]. Item n belongs to push
-- p_push[n], and the items of a buffer get places in array order. `p_again` marks a repetition
-- after a lost reply. A push that is already stored is then found by the id of its first item.
--
-- Returns one row per push, with one of these states:
-- - 0: stored now. `first` is the first free place of its buffer before this batch.
-- - 1: the key was used before for the same content. `made` lists the items of that push.
-- - 2: the buffer does not exist.
-- - 3: the key was used before for other content.
-- - 4: stored by an earlier try. `first` is the place of its first item.
-- p_owner has the client of each push, and p_counted the bytes that each item counts for.
--
-- The statements use scalar subqueries and subscripts instead of joins. The planner has no
-- statistics of the arrays and would join two of them with a nested loop.
create function outpace.push_v1(
  p_buffers int8[], p_of int4[], p_keys text[], p_prints bytea[], p_nows int8[], p_firsts text[],
  p_push int4[], p_ids text[], p_requests text[], p_crcs int8[], p_sizes int8[], p_bodies bytea[],
  p_not_befores int8[], p_expires int8[], p_again bool, p_tell bool, p_owner text[], p_counted int8[]
) returns table (state int4, first int8, made text) language plpgsql volatile as $$
#variable_conflict use_column
declare
  nexts int8[]; lasts int8[]; knowns bool[];  -- by buffer
  states int4[];                              -- by push
  places int8[]; seqs int8[];                 -- by item
begin
  perform 1 from outpace.buffer b where b.number = any (p_buffers) order by b.number for no key update;
  select array_agg(coalesce(b.next_seq, 0) order by k.at), array_agg(coalesce(b.last_kept, 0) order by k.at),
         array_agg(coalesce(not b.removed, false) order by k.at)
    into nexts, lasts, knowns
    from unnest(p_buffers) with ordinality k(number, at) left join outpace.buffer b on b.number = k.number;
  insert into outpace.once (key, fingerprint, made)
  select k.key, k.print, k.now from unnest(p_keys, p_prints, p_nows, p_of) k(key, print, now, buffer)
   where k.key is not null and knowns[k.buffer]
   order by k.key
  on conflict do nothing;

  -- The items of a key are written last, so an empty list means that this call inserted the key.
  select array_agg(case
           when p.used is not null and p.used <> p.print then 3
           when p.used is not null and p.made <> '[]' then 1
           when not knowns[p.buffer] then 2
           when p.again then 4
           else 0 end order by p.at)
    into states
    from (select p.buffer, p.print, p.at,
                 case when p.key is not null
                      then (select o.fingerprint from outpace.once o where o.key = p.key) end as used,
                 case when p.key is not null then (select o.items from outpace.once o where o.key = p.key) end as made,
                 p_again and exists (select 1 from outpace.item i where i.id = p.first) as again
            from unnest(p_of, p_keys, p_prints, p_firsts) with ordinality p(buffer, key, print, first, at)) p;

  -- Places of the items that are stored now. Other items get 0, because subscripts into an array
  -- with nulls are slow.
  select array_agg(case when f.fits then nextval('outpace.item_place_seq') else 0 end order by f.nr),
         array_agg(case when f.fits then nexts[f.buffer] - 1 + f.rank else 0 end order by f.nr)
    into places, seqs
    from (select p_of[n.push] as buffer, n.nr, states[n.push] = 0 as fits,
                 row_number() over (partition by p_of[n.push], states[n.push] = 0 order by n.nr) as rank
            from unnest(p_push) with ordinality n(push, nr)) f;

  insert into outpace.item (place, id, buffer, born, seq, request, crc, size, kept, not_before, expires, owner, counted)
  overriding system value
  select places[n.nr], n.id, p_buffers[p_of[n.push]], seqs[n.nr], seqs[n.nr], n.request, n.crc, n.size,
         greatest(p_nows[n.push], lasts[p_of[n.push]]), n.not_before, n.expires, p_owner[n.push], n.counted
    from unnest(p_push, p_ids, p_requests, p_crcs, p_sizes, p_not_befores, p_expires, p_counted) with ordinality
         n(push, id, request, crc, size, not_before, expires, counted, nr)
   where places[n.nr] > 0;

  insert into outpace.body (place, body)
  select places[n.nr], n.body from unnest(p_bodies) with ordinality n(body, nr) where places[n.nr] > 0;

  update outpace.buffer b set next_seq = b.next_seq + f.n, version = b.version + 1, last_kept = greatest(b.last_kept, f.now)
    from (select p_buffers[p_of[n.push]] as number, count(*) n, max(p_nows[n.push]) as now
            from unnest(p_push) n(push) where states[n.push] = 0 group by 1) f
   where b.number = f.number;
  perform outpace.count_v1(array_agg(p_buffers[p_of[n.push]]), array_agg(p_owner[n.push]), array_agg(n.counted), 1)
     from unnest(p_push, p_counted) n(push, counted) where states[n.push] = 0 having count(*) > 0;

  update outpace.once o set items = m.items
    from (select p_keys[n.push] as key,
                 jsonb_agg(jsonb_build_array(n.id, (select i.seq from outpace.item i where i.id = n.id)) order by n.nr)::text
                 as items
            from unnest(p_push, p_ids) with ordinality n(push, id, nr)
           where states[n.push] = 0 and p_prints[n.push] is not null group by n.push) m
   where o.key = m.key;

  if p_tell then perform pg_notify('outpace_spool', ''); end if;
  return query
    select p.state, case p.state when 0 then nexts[p.buffer]
                        when 4 then (select i.seq from outpace.item i where i.id = p.first) end,
           case p.state when 1 then (select o.items from outpace.once o where o.key = p.key) end
      from unnest(states, p_of, p_firsts, p_keys) with ordinality p(state, buffer, first, key, at)
     order by p.at;
end $$;

-- Registers a replica at its start or after its heartbeat has expired. Its leases get a new term,
-- so that items in flight are recovered.
create function outpace.enter_v1(p_id int8, p_ttl_ms int8) returns void language plpgsql volatile as $$
begin
  insert into outpace.drainer values (p_id, clock_timestamp() + p_ttl_ms * interval '1 ms')
  on conflict (id) do update set until = excluded.until;
  update outpace.lease set term = term + 1 where owner = p_id;
  delete from outpace.drainer where until < clock_timestamp() - interval '1 day';
end $$;

-- Records a heartbeat. Returns false if the last one has expired, and the replica must call
-- enter_v1.
create function outpace.alive_v1(p_id int8, p_ttl_ms int8) returns bool language plpgsql volatile as $$
begin
  update outpace.drainer set until = clock_timestamp() + p_ttl_ms * interval '1 ms'
   where id = p_id and until > clock_timestamp();
  return found;
end $$;

-- Takes the leases of those buffers in p_buffers that have no live holder. Returns the taken ones
-- with their former holders, or null for those without one.
create function outpace.take_v1(p_id int8, p_buffers int8[])
returns table (taken_buffer int8, former_owner int8) language plpgsql volatile as $$
begin
  return query
    with former as (select l.buffer, l.owner from outpace.lease l where l.buffer = any (p_buffers)),
    taken as (
      insert into outpace.lease as l (buffer, owner, term)
      select b, p_id, 1 from unnest(p_buffers) b order by b
      on conflict (buffer) do update set owner = p_id, term = l.term + 1
       where l.owner is null
          or not exists (select 1 from outpace.drainer d where d.id = l.owner and d.until > clock_timestamp())
      returning l.buffer)
    select t.buffer, f.owner from taken t left join former f on f.buffer = t.buffer;
end $$;

-- Releases all leases of a replica and removes its heartbeat.
create function outpace.quit_v1(p_id int8) returns void language plpgsql volatile as $$
begin
  update outpace.lease set owner = null where owner = p_id;
  delete from outpace.drainer where id = p_id;
  perform pg_notify('outpace_spool', '');
end $$;

-- Returns true if the replica holds the buffer under this term. A row lock keeps the lease from
-- changing hands before the transaction ends.
create function outpace.holds_v1(p_id int8, p_buffer int8, p_term int8) returns bool
language plpgsql volatile as $$
begin
  perform 1 from outpace.lease l
   where l.buffer = p_buffer and l.owner = p_id and l.term = p_term
     and exists (select 1 from outpace.drainer d where d.id = p_id and d.until > clock_timestamp())
     for share;
  return found;
end $$;

-- Claims an item for sending and returns it. Returns no row if its state does not allow that or
-- the replica does not hold the buffer. A repeated call with the same token does not count as
-- another attempt.
create function outpace.claim_v1(p_id int8, p_buffer int8, p_term int8, p_item text, p_token int8)
returns setof outpace.item language plpgsql volatile as $$
begin
  if not outpace.holds_v1(p_id, p_buffer, p_term) then return; end if;
  return query
    update outpace.item i
       set status = 2, attempts = i.attempts + case when i.status = 2 then 0 else 1 end, token = p_token
     where i.id = p_item and (i.status < 2 or (i.status = 2 and i.token = p_token))
    returning i.*;
end $$;

-- Removes the attempts of an item, and returns the bytes that they counted for.
create function outpace.shed_v1(p_item text) returns int8 language plpgsql volatile as $$
declare gone int8;
begin
  with old as (delete from outpace.attempt where item = p_item returning headers, body, error)
  select coalesce(sum(512 + coalesce(octet_length(headers), 0) + coalesce(octet_length(body), 0)
                      + coalesce(octet_length(error), 0)), 0) into gone from old;
  return gone;
end $$;

-- Records an attempt and the resulting state of its item, and returns the item. A repeated call
-- returns the item again. Returns no row if the attempt is not recorded, because the item is not
-- in flight or the replica does not hold the buffer.
create function outpace.finish_v1(
  p_id int8, p_buffer int8, p_term int8, p_item text, p_number int8,
  p_status int8, p_retries int8, p_refusals int8, p_not_before int8, p_doubtful bool, p_finished int8, p_paused text,
  p_started int8, p_took int8, p_waited int8, p_outcome text, p_code int8, p_error text, p_next int8,
  p_was_doubtful bool, p_headers text, p_body bytea, p_cut bool, p_bytes int8, p_shed bool
) returns setof outpace.item language plpgsql volatile as $$
declare client text; adds int8 := p_bytes;
begin
  if outpace.holds_v1(p_id, p_buffer, p_term) then
    update outpace.item
       set status = p_status, retries = p_retries, refusals = p_refusals, not_before = p_not_before,
           doubtful = p_doubtful, finished = p_finished, code = p_code, error = p_error
     where id = p_item and status = 2 and attempts = p_number returning owner into client;
    if found then
      if p_shed then adds := adds - outpace.shed_v1(p_item); end if;
      update outpace.item set counted = counted + adds where id = p_item;
      insert into outpace.attempt (item, buffer, number, started, took, waited, outcome, code, error, next,
                                   doubtful, headers, body, cut, recorded)
      values (p_item, p_buffer, p_number, p_started, p_took, p_waited, p_outcome, p_code, p_error, p_next,
              p_was_doubtful, p_headers, p_body, p_cut, outpace.millis_v1());
      insert into outpace.usage as u values (p_buffer, client, 1 + (hashtext(p_item) & 15), 0, adds)
      on conflict (buffer, owner, shard) do update set bytes = u.bytes + excluded.bytes;
      if p_paused is not null then
        update outpace.buffer set paused = p_paused, version = version + 1, edition = edition + 1
         where number = p_buffer;
      end if;
    end if;
  end if;
  return query
    select i.* from outpace.item i
     where i.id = p_item
       and exists (select 1 from outpace.attempt a where a.item = p_item and a.number = p_number);
end $$;

-- Removes at most p_most items of a buffer in these states, stored before p_before. Returns their
-- number.
create function outpace.purge_v1(p_buffer int8, p_states int8[], p_before int8, p_most int4)
returns int8 language plpgsql volatile as $$
declare places int8[]; ids text[]; owners text[]; sizes int8[];
begin
  perform 1 from outpace.buffer where number = p_buffer for no key update;
  select array_agg(s.place), array_agg(s.id), array_agg(s.owner), array_agg(s.counted) into places, ids, owners, sizes from (
    select i.place, i.id, i.owner, i.counted from outpace.item i
     where i.buffer = p_buffer and i.status = any (p_states) and i.kept < p_before
     limit p_most for update) s;
  if places is null then return 0; end if;
  delete from outpace.attempt where item = any (ids);
  delete from outpace.body where place = any (places);
  delete from outpace.item where place = any (places);
  perform outpace.count_v1(array_fill(p_buffer, array[cardinality(places)]), owners, sizes, -1);
  update outpace.buffer set version = version + 1 where number = p_buffer;
  return cardinality(places);
end $$;

-- Removes the oldest finished items, at most p_most of each state, and keys made before p_keys.
-- Delivered and cancelled items must have finished before p_delivered, dead and expired ones
-- before p_dead. For the clients in p_owners, p_recent takes the place of p_delivered. Returns the
-- number of items removed.
create function outpace.forget_v1(
  p_delivered int8, p_dead int8, p_keys int8, p_most int4, p_owners text[], p_recent int8
) returns int8
language plpgsql volatile as $$
declare state int8; places int8[]; ids text[]; buffers int8[]; owners text[]; sizes int8[]; count int8 := 0;
begin
  delete from outpace.once where made < p_keys;
  foreach state in array array[3, 4, 5, 6] loop
    select array_agg(s.place), array_agg(s.id), array_agg(s.buffer), array_agg(s.owner), array_agg(s.counted)
      into places, ids, buffers, owners, sizes from (
      select i.place, i.id, i.buffer, i.owner, i.counted from outpace.item i
       where i.status = state and i.status > 2
         and i.finished < case when state in (4, 6) then p_dead
                               when cardinality(p_owners) > 0 then greatest(p_delivered, p_recent) else p_delivered end
         and (state in (4, 6) or i.finished < p_delivered or i.owner = any (p_owners))
       order by i.finished limit p_most for update skip locked) s;
    continue when places is null;
    delete from outpace.attempt where item = any (ids);
    delete from outpace.body where place = any (places);
    delete from outpace.item where place = any (places);
    perform 1 from outpace.buffer where number = any (buffers) order by number for no key update;
    perform outpace.count_v1(buffers, owners, sizes, -1);
    count := count + cardinality(places);
  end loop;
  return count;
end $$;

-- Queues dead and expired items again, at their old places or behind all others. Returns their
-- number.
create function outpace.redrive_v1(p_buffer int8, p_ids text[], p_most int8, p_head bool, p_now int8)
returns int8 language plpgsql volatile as $$
declare begin_at int8; count int8;
begin
  select next_seq into begin_at from outpace.buffer where number = p_buffer for no key update;
  with dead as (
    select i.place, row_number() over (order by i.seq) as n from outpace.item i
     where i.buffer = p_buffer and i.status in (4, 6) and (cardinality(p_ids) = 0 or i.id = any (p_ids))
     order by i.seq limit p_most)
  update outpace.item i
     set status = 0, retries = 0, refusals = 0, not_before = p_now, expires = null, finished = null,
         seq = case when p_head then i.seq else begin_at + dead.n - 1 end
    from dead where i.place = dead.place;
  get diagnostics count = row_count;
  -- A new edition voids the place below which a replica has found all items finished.
  update outpace.buffer set version = version + 1, edition = edition + 1,
         next_seq = next_seq + case when p_head then 0 else count end
   where number = p_buffer;
  perform pg_notify('outpace_spool', '');
  return count;
end $$;

-- Marks a buffer as removed and returns 0. The caller removes its items in batches afterwards.
-- Returns -1 if there is no such buffer, or the number of live items if there are any and p_forced
-- is false.
create function outpace.remove_v1(p_buffer int8, p_forced bool) returns int8 language plpgsql volatile as $$
declare live int8;
begin
  perform 1 from outpace.buffer where number = p_buffer for no key update;
  if not found then return -1; end if;
  -- A repeated call succeeds.
  if exists (select from outpace.buffer where number = p_buffer and removed) then return 0; end if;
  select count(*) into live from outpace.item where buffer = p_buffer and status < 3;
  if live > 0 and not p_forced then return live; end if;
  update outpace.buffer set removed = true, version = version + 1 where number = p_buffer;
  delete from outpace.lease where buffer = p_buffer;
  perform pg_notify('outpace_spool', '');
  return 0;
end $$;
