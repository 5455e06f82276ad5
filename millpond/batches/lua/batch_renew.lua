-- keys: batch
-- flags: allow-oom
-- uses: clock turns
-- ARGV: id, turn, lease in ms (0 ends the turn), cursor or '', '1' if all rows before the cursor are in the queue
-- -> false if the turn is over; else the status, and the ms until the batch expires

local id = ARGV[1]
if not holds(id, ARGV[2]) then
  return false
end
local now = clock_ms()
redis.call('HSET', K.batch .. id, 'lease', int(now + tonumber(ARGV[3])))
if ARGV[4] ~= '' then
  redis.call('HSET', K.batch .. id, 'cursor', ARGV[4])
end
redis.call('HSET', K.batch .. id, 'clean', ARGV[5])
local record = redis.call('HMGET', K.batch .. id, 'status', 'expires')
return { record[1], int(tonumber(record[2]) - now) }
