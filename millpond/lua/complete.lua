-- keys: job body result events channel counts open leases delayed deadlines dead suspects wake lane active idle weights
-- uses: lanes records
-- ARGV: id, fence, status, result, tokens served for each job, then options
-- -> for each job: 'stored' | 'known' (this very attempt has ended it before) | 'lost'
-- The first time, and no other, the tenant's charge is put right.

local answers, now = {}, clock_ms()
local owed, order = {}, {} -- tokens by priority and tenant, so that each counter is written once
local jobs, tokens = 0, 0
for i = 1, #ARGV - 5, 5 do
  local id, fence, served = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 4])
  local record = redis.call('HMGET', K.job .. id, 'status', 'fence', 'priority', 'tenant', 'charge')
  local answer = 'lost'
  if record[2] == fence and record[1] == 'running' then
    finish(id, 'running', ARGV[i + 2], ARGV[i + 3], now, false)
    answer = 'stored'
    local whose = lane_of(record[3], record[4])
    if not owed[whose] then
      owed[whose] = { priority = record[3], tenant = record[4], tokens = 0 }
      order[#order + 1] = whose
    end
    owed[whose].tokens = owed[whose].tokens + served - tonumber(record[5])
    if served > 0 then
      jobs, tokens = jobs + 1, tokens + served
    end
  elseif record[2] == fence then
    answer = 'known'
  end
  answers[#answers + 1] = answer
end
for _, whose in ipairs(order) do
  charge(owed[whose].priority, owed[whose].tenant, owed[whose].tokens)
end
if jobs > 0 then
  redis.call('HINCRBY', K.counts, 'served:jobs', jobs)
  redis.call('HINCRBY', K.counts, 'served:tokens', tokens)
end
return answers
