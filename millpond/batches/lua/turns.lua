-- A batch is worked on in turns. Whoever has the current one may write, and nobody else: a process that was
-- stopped for longer than its lease finds that its turn is over.
local function holds(id, turn)
  return redis.call('HGET', K.batch .. id, 'turn') == turn
end
