-- keys: job body result events channel counts open leases delayed deadlines dead suspects wake pending_interactive pending_normal pending_batch
-- uses: records
-- ARGV: id, fence, status, result for each job, then options
-- -> for each job: 'stored' | 'known' (this very attempt has ended it before) | 'lost'

local answers, now = {}, clock_ms()
for i = 1, #ARGV - 4, 4 do
  local id, fence = ARGV[i], ARGV[i + 1]
  local record = redis.call('HMGET', K.job .. id, 'status', 'fence')
  local answer = 'lost'
  if record[2] == fence and record[1] == 'running' then
    finish(id, 'running', ARGV[i + 2], ARGV[i + 3], now, false)
    answer = 'stored'
  elseif record[2] == fence then
    answer = 'known'
  end
  answers[#answers + 1] = answer
end
return answers
