-- keys: batch
-- flags: allow-oom
-- uses: clock turns
-- ARGV: id, turn, how the batch ends: 'completed', 'expired' or 'cancelled'
-- -> the outcome, or false if the turn is over. From here on only its files are put in order.

local id = ARGV[1]
if not holds(id, ARGV[2]) then
  return false
end
local batch = K.batch .. id
if redis.call('HSETNX', batch, 'outcome', ARGV[3]) == 1 and redis.call('HGET', batch, 'status') == 'in_progress' then
  redis.call('HSET', batch, 'status', 'finalizing', 'at:finalizing', int(clock_ms()))
end
return redis.call('HGET', batch, 'outcome')
