-- keys: batch batches unfinished file
-- uses: clock
-- ARGV: id, tenant, input file, window in ms, then fields and values of the record
-- -> 'none' if the tenant has no such file, 'not_input', or 'created'. Harmless when repeated.

local id, tenant = ARGV[1], ARGV[2]
if redis.call('EXISTS', K.batch .. id) == 1 then
  return 'created'
end
local file = redis.call('HMGET', K.file .. ARGV[3], 'tenant', 'purpose')
if file[1] ~= tenant then
  return 'none'
end
if file[2] ~= 'batch' then
  return 'not_input'
end
local now = clock_ms()
for i = 5, #ARGV, 2 do
  redis.call('HSET', K.batch .. id, ARGV[i], ARGV[i + 1])
end
redis.call('HSET', K.batch .. id, 'tenant', tenant, 'input', ARGV[3], 'status', 'validating', 'turn', '0',
  'lease', '0', 'created', int(now), 'expires', int(now + tonumber(ARGV[4])))
redis.call('ZADD', K.batches .. tenant, int(now), id)
redis.call('SADD', K.unfinished, id)
return 'created'
