-- keys: job events
-- ARGV: event_maxlen, then id, fence, the text's field in the record, offset, characters, event JSON for each delta
-- -> for each delta: 'stored' | 'known' (it was written before, or the job keeps no stream) | 'lost'
-- The record knows up to where each text has been written, so a delta that comes again is not repeated.

local answers = {}
for i = 2, #ARGV, 6 do
  local id, said, event = ARGV[i], ARGV[i + 2], ARGV[i + 5]
  local record = redis.call('HMGET', K.job .. id, 'status', 'fence', 'stream', said)
  local answer = 'known'
  if record[1] ~= 'running' or record[2] ~= ARGV[i + 1] then
    answer = 'lost'
  elseif record[3] == '1' and tonumber(ARGV[i + 3]) >= tonumber(record[4] or 0) then
    local entry = redis.call('XADD', K.events .. id, 'MAXLEN', '~', ARGV[1], '*', 'event', event)
    redis.call('PUBLISH', K.events .. id, '{"event_id":"' .. entry .. '",' .. string.sub(event, 2))
    redis.call('HSET', K.job .. id, said, ARGV[i + 3] + ARGV[i + 4])
    answer = 'stored'
  end
  answers[#answers + 1] = answer
end
return answers
