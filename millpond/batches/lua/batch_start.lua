-- keys: batch rows doomed
-- uses: clock turns
-- ARGV: id, turn, number of rows, names of the models and of the queues as JSON, then objects with rows and the place of their first
-- -> false if the turn is over; else the status: the rows can run if it is 'in_progress'

local id = ARGV[1]
if not holds(id, ARGV[2]) then
  return false
end
local status = redis.call('HGET', K.batch .. id, 'status')
if status == 'validating' then
  status = 'in_progress'
  redis.call('HSET', K.batch .. id, 'status', status, 'at:in_progress', int(clock_ms()), 'total', ARGV[3],
    'models', ARGV[4], 'queues', ARGV[5], 'cursor', '0')
  for i = 6, #ARGV, 2 do
    redis.call('RPUSH', K.rows .. id, ARGV[i] .. ' ' .. ARGV[i + 1])
    redis.call('ZREM', K.doomed, ARGV[i])
  end
elseif status == 'cancelling' then
  for i = 6, #ARGV, 2 do
    redis.call('ZADD', K.doomed, int(clock_ms()), ARGV[i])
  end
end
return status
