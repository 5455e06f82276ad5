-- keys: batch
-- flags: allow-oom
-- uses: clock
-- ARGV: id, the turn that is expected to be over, lease in ms, nonce of this call
-- -> 'over' (or gone), 'stale' if somebody has had a later turn, 'held' if that one's lease has not ended,
-- or 'taken', the new turn, and '1' if the turn before ended in order. The same answer when repeated.

local id = ARGV[1]
local record = redis.call('HMGET', K.batch .. id, 'turn', 'lease', 'ended', 'clean', 'nonce', 'came_clean')
if not record[1] or record[3] then
  return { 'over' }
end
if record[5] == ARGV[4] then
  return { 'taken', record[1], record[6] }
end
if record[1] ~= ARGV[2] then
  return { 'stale' }
end
local now = clock_ms()
if tonumber(record[2]) > now then
  return { 'held' }
end
local turn = int(tonumber(record[1]) + 1)
local clean = record[4] or '1'
redis.call('HSET', K.batch .. id, 'turn', turn, 'lease', int(now + tonumber(ARGV[3])), 'clean', '0',
  'nonce', ARGV[4], 'came_clean', clean)
return { 'taken', turn, clean }
