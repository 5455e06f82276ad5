-- Take a file away: its objects are left to those who clean the storage.
local function remove_file(id, now)
  local record = redis.call('HMGET', K.file .. id, 'tenant', 'bytes', 'purpose')
  for _, part in ipairs(redis.call('LRANGE', K.parts .. id, 0, -1)) do
    redis.call('ZADD', K.doomed, int(now), part:match('^(%S+) '))
  end
  if record[3] == 'batch' then
    if redis.call('HINCRBY', K.uploaded, record[1], -tonumber(record[2])) <= 0 then
      redis.call('HDEL', K.uploaded, record[1])
    end
  end
  redis.call('DEL', K.file .. id, K.parts .. id)
  redis.call('ZREM', K.files .. record[1], id)
  redis.call('ZREM', K.expiring, id)
end
