-- keys: batch unfinished untold file parts rows done doomed expiring
-- flags: allow-oom
-- uses: clock turns
-- ARGV: id, turn, final status, ttl of the record in ms, ttl of the files in ms, errors as JSON or '',
--   object that replaces the parts of the output or '', its bytes, the same for the errors
-- -> 1, or false if the turn is over. Harmless when repeated.

local id = ARGV[1]
if not holds(id, ARGV[2]) then
  return false
end
local batch = K.batch .. id
if redis.call('HGET', batch, 'ended') then
  return 1
end
local now = clock_ms()
local function doom(object)
  redis.call('ZADD', K.doomed, int(now), object:match('^(%S+) '))
end
local function complete(kind, object, bytes)
  local file = redis.call('HGET', batch, kind)
  if not file then
    return
  end
  if object ~= '' then
    for _, part in ipairs(redis.call('LRANGE', K.parts .. file, 0, -1)) do
      doom(part)
    end
    redis.call('DEL', K.parts .. file)
    redis.call('RPUSH', K.parts .. file, object .. ' ' .. bytes)
    redis.call('ZREM', K.doomed, object)
  end
  local expires = tonumber(redis.call('HGET', K.file .. file, 'created')) + tonumber(ARGV[5])
  redis.call('HDEL', K.file .. file, 'growing')
  redis.call('HSET', K.file .. file, 'expires', int(expires))
  redis.call('ZADD', K.expiring, int(expires), file)
end
complete('output', ARGV[7], ARGV[8])
complete('errors', ARGV[9], ARGV[10])
for _, object in ipairs(redis.call('LRANGE', K.rows .. id, 0, -1)) do
  doom(object)
end
redis.call('DEL', K.rows .. id, K.done .. id)
redis.call('HSET', batch, 'status', ARGV[3], 'at:' .. ARGV[3], int(now), 'ended', '1', 'lease', '0')
if ARGV[6] ~= '' then
  redis.call('HSET', batch, 'problems', ARGV[6])
end
redis.call('PEXPIRE', batch, ARGV[4])
redis.call('SREM', K.unfinished, id)
redis.call('SADD', K.untold, id)
return 1
