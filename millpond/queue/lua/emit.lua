-- keys: job events kept stored
-- uses: stored kept
-- ARGV: event_maxlen, then for each item: id, fence, its field in the record, offset, length, and what is added. Text: said or thought, offset and length in characters, event JSON. Tokens: kept:CHOICE, in bytes, the bytes
-- -> for each item: 'stored' | 'known' (it was written before, or the job keeps no stream) | 'lost'
-- The record knows up to where each text has been written, so a delta that comes again is not repeated; the
-- same is true of tokens by the length of what is kept.

-- Tokens that begin beyond the end: the server has lost some, so what is left is of no use.
local function keep(id, choice, offset, bytes, n, tenant, kept)
  local key = K.kept .. id .. '/' .. choice
  local length = redis.call('STRLEN', key)
  if length < offset then
    forget_kept(id, n, tenant, kept)
  end
  if length ~= offset then
    return 'known'
  end
  redis.call('APPEND', key, bytes)
  redis.call('HINCRBY', K.job .. id, 'kept', #bytes)
  redis.call('HINCRBY', K.stored .. tenant, 'bodies', #bytes)
  return 'stored'
end

local answers = {}
for i = 2, #ARGV, 6 do
  local id, field, offset, added = ARGV[i], ARGV[i + 2], tonumber(ARGV[i + 3]), ARGV[i + 5]
  local choice = string.match(field, '^kept:(%d+)$')
  local record = redis.call('HMGET', K.job .. id, 'status', 'fence', 'stream', 'n', 'tenant', 'kept', field)
  local answer = 'known'
  if record[1] ~= 'running' or record[2] ~= ARGV[i + 1] then
    answer = 'lost'
  elseif choice then
    answer = keep(id, choice, offset, added, record[4], record[5], record[6])
  elseif record[3] == '1' and offset >= tonumber(record[7] or 0) then
    local entry = redis.call('XADD', K.events .. id, 'MAXLEN', '~', ARGV[1], '*', 'event', added)
    redis.call('PUBLISH', K.events .. id, '{"event_id":"' .. entry .. '",' .. string.sub(added, 2))
    redis.call('HSET', K.job .. id, field, ARGV[i + 3] + ARGV[i + 4])
    answer = 'stored'
  end
  answers[#answers + 1] = answer
end
return answers
