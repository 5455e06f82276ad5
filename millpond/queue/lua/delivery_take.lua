-- keys: delivery deliveries endpoint webhook_secrets
-- flags: allow-oom
-- uses: clock
-- ARGV: how many, lease_ms, a new secret
-- -> for each delivery that was due: name, tries with this one, tenant, type, at, url, secret, data or ''
-- Each counts as tried, and is due again when the lease ends, unless `delivery_settle` says before how the
-- try went: who takes it and dies has made a try that failed. The new secret is for a tenant that has none.

local now = clock_ms()
local taken = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', K.deliveries, '-inf', int(now), 'LIMIT', 0, ARGV[1])) do
  local key = K.delivery .. name
  local found = redis.call('HMGET', key, 'tenant', 'type', 'at', 'url', 'data')
  local receiver, url, secret = string.match(name, '^[^/]*'), found[4], nil
  if found[1] and receiver == 'url' then
    redis.call('HSETNX', K.webhook_secrets, found[1], ARGV[3])
    secret = redis.call('HGET', K.webhook_secrets, found[1])
  elseif found[1] then
    local endpoint = redis.call('HMGET', K.endpoint .. receiver, 'url', 'secret', 'disabled')
    if not endpoint[3] then
      url, secret = endpoint[1], endpoint[2]
    end
  end
  if url and secret then
    local tries = redis.call('HINCRBY', key, 'tries', 1)
    redis.call('HSET', key, 'held', '1')
    redis.call('ZADD', K.deliveries, int(now + tonumber(ARGV[2])), name)
    taken[#taken + 1] = { name, tries, found[1], found[2], found[3], url, secret, found[5] or '' }
  else -- its receiver is gone, or it is
    redis.call('ZREM', K.deliveries, name)
    redis.call('UNLINK', key)
  end
end
return taken
