-- keys: job result counts pending_interactive pending_normal pending_batch
-- ARGV: id, tenant or '' for any
-- -> {record as a flat list, result or false, now, counts as a flat list, sequence number at the head of its lane}
-- Reads only. An empty list: there is no such job.

local HEAD_LOOKS = 16

local id = ARGV[1]
-- The tenant before the record: another's job takes no longer to refuse than one that is not there.
local tenant = redis.call('HGET', K.job .. id, 'tenant')
if not tenant or (ARGV[2] ~= '' and tenant ~= ARGV[2]) then
  return {}
end
local record = redis.call('HGETALL', K.job .. id)
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local head = 0
if redis.call('HGET', K.job .. id, 'status') == 'queued' then
  local lane = K['pending_' .. redis.call('HGET', K.job .. id, 'priority')]
  for _, first in ipairs(redis.call('LRANGE', lane, 0, HEAD_LOOKS - 1)) do
    local seen = redis.call('HMGET', K.job .. first, 'status', 'seq')
    if seen[1] == 'queued' then
      head = tonumber(seen[2])
      break
    end
  end
end
return { record, redis.call('GET', K.result .. id), now, redis.call('HGETALL', K.counts), head }
