-- keys: job leases
-- flags: allow-oom
-- uses: clock
-- ARGV: lease_ms, then id, fence for each held job
-- -> {{lost ids}, {ids to cancel}, {ids past their deadline}}
-- A lease that ran out but was not reaped yet is renewed: nobody else holds the job.

local now = clock_ms()
local expiry = int(now + tonumber(ARGV[1]))
local lost, cancelled, expired = {}, {}, {}
for i = 2, #ARGV, 2 do
  local id = ARGV[i]
  local record = redis.call('HMGET', K.job .. id, 'status', 'fence', 'cancel', 'deadline')
  if record[1] ~= 'running' or record[2] ~= ARGV[i + 1] then
    lost[#lost + 1] = id
  else
    redis.call('ZADD', K.leases, expiry, id)
    if record[3] then
      cancelled[#cancelled + 1] = id
    elseif record[4] and tonumber(record[4]) <= now then
      expired[#expired + 1] = id
    end
  end
end
return { lost, cancelled, expired }
