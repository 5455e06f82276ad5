-- keys: job body result events channel counts open leases delayed deadlines dead wake pending_interactive pending_normal pending_batch
-- uses: records
-- ARGV: id, fence, delay_ms, result if this was the last attempt, options
-- -> 'retry' | 'buried' | 'stored' (it was to be cancelled, and now is) | 'known' | 'lost'

local id, fence = ARGV[1], ARGV[2]
local record = redis.call('HMGET', K.job .. id, 'status', 'fence', 'attempts')
if record[2] ~= fence then
  return 'lost'
end
if record[1] ~= 'running' then
  return record[1] == 'queued' and 'lost' or 'known'
end
local now = clock_ms()
if tonumber(record[3]) >= OPTIONS.max_attempts then
  bury(id, 'running', ARGV[4], now)
  return 'buried'
end
return requeue(id, now, now + tonumber(ARGV[3]), false, 'failed') and 'retry' or 'stored'
