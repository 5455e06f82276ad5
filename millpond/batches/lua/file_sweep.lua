-- keys: file files parts expiring doomed uploaded
-- flags: allow-oom
-- uses: clock doomed
-- ARGV: limit
-- -> the number of expired files that were taken away, and objects that may be removed from the storage

local now = clock_ms()
local ids = redis.call('ZRANGEBYSCORE', K.expiring, '-inf', int(now), 'LIMIT', 0, ARGV[1])
for _, id in ipairs(ids) do
  remove_file(id, now)
end
return { #ids, redis.call('ZRANGEBYSCORE', K.doomed, '-inf', int(now), 'LIMIT', 0, ARGV[1]) }
