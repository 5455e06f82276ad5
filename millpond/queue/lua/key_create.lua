-- keys: api_key api_keys
-- uses: clock
-- ARGV: key id, digest, then field, value for each other field of the record
-- -> the time of its making, now or, if this very key is there, before; false when another has the id

local key = K.api_key .. ARGV[1]
local record = redis.call('HMGET', key, 'digest', 'created')
if record[1] then
  return record[1] == ARGV[2] and record[2]
end
local now = int(clock_ms())
redis.call('HSET', key, 'created', now, 'digest', ARGV[2], unpack(ARGV, 3))
redis.call('SADD', K.api_keys, ARGV[1])
return now
