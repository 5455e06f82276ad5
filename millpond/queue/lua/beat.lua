-- keys: workers watched
-- flags: allow-oom
-- uses: clock
-- ARGV: worker, JSON or '' to sign off, forget_after_ms
-- -> whether somebody watches the rows, 1 or 0. Entries of workers silent for longer are dropped.

local now = clock_ms()
if ARGV[2] == '' then
  redis.call('HDEL', K.workers, ARGV[1])
else
  redis.call('HSET', K.workers, ARGV[1], int(now) .. ' ' .. ARGV[2])
end
local all = redis.call('HGETALL', K.workers)
for i = 1, #all, 2 do
  local beat = tonumber(string.match(all[i + 1], '^%d+'))
  if beat + tonumber(ARGV[3]) < now then
    redis.call('HDEL', K.workers, all[i])
  end
end
return redis.call('EXISTS', K.watched)
