-- keys: endpoint endpoint_ids endpoints
-- uses: clock
-- ARGV: endpoint id, tenant, url, events, secret, how many a tenant may have
-- -> the time of its making, now or, if this very endpoint is there, before; false when the tenant has as many as it may

local key = K.endpoint .. ARGV[1]
local made = redis.call('HGET', key, 'created')
if made then
  return made
end
if redis.call('HLEN', K.endpoints .. ARGV[2]) >= tonumber(ARGV[6]) then
  return false
end
local now = int(clock_ms())
redis.call('HSET', key, 'tenant', ARGV[2], 'url', ARGV[3], 'events', ARGV[4], 'secret', ARGV[5], 'created', now)
redis.call('SADD', K.endpoint_ids, ARGV[1])
redis.call('HSET', K.endpoints .. ARGV[2], ARGV[1], ARGV[4])
return now
