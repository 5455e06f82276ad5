-- keys: job body counts deadlines wake pending_interactive pending_normal pending_batch
-- ARGV: id, body, digest, priority, tenant, tokens, deadline_ms or '', streams '1'|'0', max_depth
-- -> {'accepted' | 'known' | 'conflict' | 'full', status or depth}
-- Harmless when repeated: a known id with the same digest changes nothing.

local id, body, digest, priority, tenant = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local job = K.job .. id
local known = redis.call('HMGET', job, 'digest', 'status')
if known[1] then
  return { known[1] == digest and 'known' or 'conflict', known[2] }
end

local queued = redis.call('HMGET', K.counts, 'queued:interactive', 'queued:normal', 'queued:batch')
local depth = tonumber(queued[1] or 0) + tonumber(queued[2] or 0) + tonumber(queued[3] or 0)
if depth >= tonumber(ARGV[9]) then
  return { 'full', depth }
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local seq = redis.call('HINCRBY', K.counts, 'seq:' .. priority, 1)
redis.call('HINCRBY', K.counts, 'queued:' .. priority, 1)
redis.call('HSET', job, 'status', 'queued', 'priority', priority, 'tenant', tenant, 'tokens', ARGV[6],
  'digest', digest, 'seq', seq, 'created', string.format('%.0f', now), 'attempts', '0', 'stream', ARGV[8])
if ARGV[7] ~= '' then
  local deadline = string.format('%.0f', now + tonumber(ARGV[7]))
  redis.call('HSET', job, 'deadline', deadline)
  redis.call('ZADD', K.deadlines, deadline, id)
end
redis.call('SET', K.body .. id, body)
redis.call('RPUSH', K['pending_' .. priority], id)
if redis.call('EXISTS', K.wake) == 0 then
  redis.call('LPUSH', K.wake, '1')
end
return { 'accepted', 'queued' }
