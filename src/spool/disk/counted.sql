-- Columns that count items for their clients, in a file of an earlier version.
begin;
alter table item add column owner text not null default '';
alter table item add column counted integer not null default 0;
update item set
  owner = coalesce(json_extract(request, '$.client'),
                   (select json_extract(b.terms, '$.owner.client') from buffer b where b.number = item.buffer), ''),
  counted = 1024 + octet_length(request) + case when large then (size + 4095) / 4096 * 4096 else size end
    + coalesce((select sum(512 + octet_length(coalesce(a.headers, '')) + octet_length(coalesce(a.body, ''))
                           + octet_length(coalesce(a.error, ''))) from attempt a where a.item = item.id), 0);
commit;
