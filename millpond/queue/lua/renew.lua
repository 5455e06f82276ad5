-- keys: job leases
-- flags: allow-oom
-- uses: clock
-- ARGV: lease_ms, then id, fence for each held job
-- -> for each job: 'held' | 'cancelled' (it is to be) | 'expired' (it is past its deadline) | 'lost'
-- A lease that ran out but was not reaped yet is renewed: nobody else holds the job.

local now = clock_ms()
local expiry = int(now + tonumber(ARGV[1]))
local answers = {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local record = redis.call('HMGET', K.job .. id, 'status', 'fence', 'cancel', 'deadline')
  local answer = 'held'
  if record[1] ~= 'running' or record[2] ~= ARGV[i + 1] then
    answer = 'lost'
  else
    redis.call('ZADD', K.leases, expiry, id)
    if record[3] then
      answer = 'cancelled'
    elseif record[4] and tonumber(record[4]) <= now then
      answer = 'expired'
    end
  end
  answers[#answers + 1] = answer
end
return answers
