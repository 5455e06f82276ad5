-- keys: job events
-- ARGV: event_maxlen, then id, fence, event JSON for each delta
-- -> ids whose lease is lost; nothing was written for those

local lost = {}
for i = 2, #ARGV, 3 do
  local id, event = ARGV[i], ARGV[i + 2]
  local record = redis.call('HMGET', K.job .. id, 'status', 'fence', 'stream')
  if record[1] ~= 'running' or record[2] ~= ARGV[i + 1] then
    lost[#lost + 1] = id
  elseif record[3] == '1' then
    local entry = redis.call('XADD', K.events .. id, 'MAXLEN', '~', ARGV[1], '*', 'event', event)
    redis.call('PUBLISH', K.events .. id, '{"event_id":"' .. entry .. '",' .. string.sub(event, 2))
  end
end
return lost
