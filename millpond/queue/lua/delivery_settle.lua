-- keys: delivery deliveries endpoint endpoints counts
-- flags: allow-oom
-- uses: clock
-- ARGV: name, tries, 'delivered' | 'retry' | 'postponed' | 'dropped' | 'gone', delay_ms, why it failed or ''
-- -> 1; 0 when this try is settled already, or was taken anew since
-- 'retry' and 'postponed' are due again after the delay; the latter was no try. 'gone' disables the endpoint.

local name, outcome = ARGV[1], ARGV[3]
local key = K.delivery .. name
local record = redis.call('HMGET', key, 'tries', 'held')
if record[1] ~= ARGV[2] or not record[2] then
  return 0
end
redis.call('HDEL', key, 'held')
local now = clock_ms()
local endpoint = K.endpoint .. string.match(name, '^[^/]*')
local registered = redis.call('HGET', endpoint, 'tenant')
if registered and outcome ~= 'postponed' then
  if outcome == 'delivered' then
    redis.call('HSET', endpoint, 'delivered', int(now))
  else
    redis.call('HSET', endpoint, 'failed', int(now), 'failure', ARGV[5])
  end
end
if outcome == 'postponed' then
  redis.call('HINCRBY', key, 'tries', -1)
end
if outcome == 'retry' or outcome == 'postponed' then
  redis.call('ZADD', K.deliveries, int(now + tonumber(ARGV[4])), name)
  return 1
end
redis.call('ZREM', K.deliveries, name)
redis.call('UNLINK', key)
redis.call('HINCRBY', K.counts, outcome == 'delivered' and 'delivered' or 'undelivered', 1)
if registered and outcome == 'gone' then
  redis.call('HSETNX', endpoint, 'disabled', int(now))
  redis.call('HDEL', K.endpoints .. registered, string.match(name, '^[^/]*'))
end
return 1
