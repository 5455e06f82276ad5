-- keys: api_key api_keys
-- uses: clock
-- ARGV: key id, then field, value for each field of the record
-- -> the time of its making, or false when there is a key of that id

if redis.call('EXISTS', K.api_key .. ARGV[1]) == 1 then
  return false
end
local now = int(clock_ms())
redis.call('HSET', K.api_key .. ARGV[1], 'created', now, unpack(ARGV, 2))
redis.call('SADD', K.api_keys, ARGV[1])
return now
