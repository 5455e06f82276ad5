-- keys: job body kept result events channel counts open leases delayed deadlines dead ended suspects wake lane active idle weights stored delivery deliveries endpoints
-- flags: allow-oom
-- uses: clock lanes waking stored kept webhooks records
-- ARGV: id, fence, delay_ms, result if this was the last attempt, options
-- -> 'retry' | 'buried' | 'stored' (it was to be cancelled, and now is) | 'known' | 'lost'

local id, fence = ARGV[1], ARGV[2]
local record = redis.call('HMGET', K.job .. id, 'status', 'fence', 'attempts', 'n', 'tenant', 'kept')
if record[2] ~= fence then
  return 'lost'
end
if record[1] ~= 'running' then
  return 'known'
end
local now = clock_ms()
if tonumber(record[3]) >= OPTIONS.max_attempts then
  bury(id, 'running', ARGV[4], now)
  return 'buried'
end
-- What went wrong may be in the tokens, so the next attempt begins afresh.
forget_kept(id, record[4], record[5], record[6])
if not take_back(id, now, false, 'failed') then
  return 'stored'
end
to_delay(id, now + tonumber(ARGV[3]))
return 'retry'
