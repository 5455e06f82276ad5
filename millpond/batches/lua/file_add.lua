-- keys: file files parts expiring doomed uploaded
-- uses: clock
-- ARGV: id, tenant, its limit of bytes, ttl in ms, object, bytes, then fields and values of the record
-- -> 'added' or 'full' and the bytes that the tenant has. Harmless when repeated.

local id, tenant, bytes = ARGV[1], ARGV[2], tonumber(ARGV[6])
local have = tonumber(redis.call('HGET', K.uploaded, tenant) or 0)
if redis.call('EXISTS', K.file .. id) == 1 then
  return { 'added', have }
end
if have + bytes > tonumber(ARGV[3]) then
  return { 'full', have }
end
local now = clock_ms()
local expires = now + tonumber(ARGV[4])
for i = 7, #ARGV, 2 do
  redis.call('HSET', K.file .. id, ARGV[i], ARGV[i + 1])
end
redis.call('HSET', K.file .. id, 'tenant', tenant, 'bytes', int(bytes), 'created', int(now), 'expires', int(expires))
redis.call('RPUSH', K.parts .. id, ARGV[5] .. ' ' .. int(bytes))
redis.call('ZADD', K.files .. tenant, int(now), id)
redis.call('ZADD', K.expiring, int(expires), id)
redis.call('HINCRBY', K.uploaded, tenant, int(bytes))
redis.call('ZREM', K.doomed, ARGV[5])
return { 'added', have + bytes }
