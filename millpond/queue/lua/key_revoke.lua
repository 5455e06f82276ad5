-- keys: api_key spent
-- flags: allow-oom
-- uses: clock
-- ARGV: key id
-- -> the time at which it was revoked, now or before; false when there is no such key
-- The record stays, so that nobody is given the id again and the list tells what was.

local key = K.api_key .. ARGV[1]
redis.call('DEL', K.spent .. ARGV[1])
if redis.call('EXISTS', key) == 0 then
  return false
end
redis.call('HSETNX', key, 'revoked', int(clock_ms()))
return redis.call('HGET', key, 'revoked')
