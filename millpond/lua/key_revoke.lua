-- keys: api_key spent
-- ARGV: key id
-- -> the time at which it was revoked, now or before; false when there is no such key
-- The record stays, so that nobody is given the id again and the list tells what was.

local key = K.api_key .. ARGV[1]
redis.call('DEL', K.spent .. ARGV[1]) -- first: a server that is full lets a script go on after it
if redis.call('EXISTS', key) == 0 then
  return false
end
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
redis.call('HSETNX', key, 'revoked', now)
return redis.call('HGET', key, 'revoked')
