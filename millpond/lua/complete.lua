-- keys: job body result events channel counts leases delayed deadlines dead wake pending_interactive pending_normal pending_batch
-- uses: records
-- ARGV: id, fence, status, result, options
-- -> 'stored' | 'known' (this very attempt has ended it before) | 'lost'

local id, fence = ARGV[1], ARGV[2]
local record = redis.call('HMGET', K.job .. id, 'status', 'fence')
if record[2] ~= fence then
  return 'lost'
end
if record[1] ~= 'running' then
  return record[1] == 'queued' and 'lost' or 'known'
end
finish(id, 'running', ARGV[3], ARGV[4], clock_ms(), false)
return 'stored'
