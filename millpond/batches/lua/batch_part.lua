-- keys: batch done file files parts doomed
-- flags: allow-oom
-- uses: clock turns
-- ARGV: id, turn, number of the part in its turn, prompt tokens, output tokens,
--   object of the output or '', its bytes, its rows, object of the errors or '', its bytes, its rows,
--   then the places of the rows that are done now
-- -> 1, or false if the turn is over. What is written of a row and that it is done are told at once, so no
-- row is written twice, whoever is killed. Harmless when repeated.

local id = ARGV[1]
if not holds(id, ARGV[2]) then
  return false
end
local batch = K.batch .. id
local number = ARGV[2] .. '/' .. ARGV[3]
if redis.call('HGET', batch, 'part') == number then
  return 1
end
redis.call('HSET', batch, 'part', number)
local function append(kind, object, bytes, rows)
  if object == '' then
    return
  end
  local file = redis.call('HGET', batch, kind .. '_id')
  if redis.call('HSETNX', K.file .. file, 'batch', id) == 1 then
    local now = int(clock_ms())
    local tenant = redis.call('HGET', batch, 'tenant')
    redis.call('HSET', K.file .. file, 'tenant', tenant, 'filename', id .. '_' .. kind .. '.jsonl',
      'purpose', 'batch_output', 'bytes', '0', 'rows', '0', 'created', now, 'growing', '1')
    redis.call('ZADD', K.files .. tenant, now, file)
    redis.call('HSET', batch, kind, file)
  end
  redis.call('RPUSH', K.parts .. file, object .. ' ' .. bytes)
  redis.call('HINCRBY', K.file .. file, 'bytes', bytes)
  redis.call('HINCRBY', K.file .. file, 'rows', rows)
  redis.call('ZREM', K.doomed, object)
end
append('output', ARGV[6], ARGV[7], ARGV[8])
append('errors', ARGV[9], ARGV[10], ARGV[11])
redis.call('HINCRBY', batch, 'prompt_tokens', ARGV[4])
redis.call('HINCRBY', batch, 'output_tokens', ARGV[5])
redis.call('HINCRBY', batch, 'completed', ARGV[8])
redis.call('HINCRBY', batch, 'failed', ARGV[11])
for i = 12, #ARGV do
  redis.call('SETBIT', K.done .. id, ARGV[i], 1)
end
return 1
