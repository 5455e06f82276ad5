-- keys: job body kept result events channel counts open leases delayed deadlines dead ended suspects wake lane active idle weights lengths stored delivery deliveries endpoints
-- flags: allow-oom
-- uses: clock lanes lengths waking stored kept webhooks records
-- ARGV: id, fence, status, result, tokens served, output tokens to learn from or '', '1' if those were cut by their limit, for each job; then options
-- -> for each job: 'stored' | 'known' (this very attempt has ended it before) | 'lost'
-- The first time, and no other, the tenant's charge is put right.

local answers, now = {}, clock_ms()
local owed, order = {}, {} -- tokens by priority and tenant, so that each counter is written once
for i = 1, #ARGV - 7, 7 do
  local id, fence, served = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 4])
  local record = redis.call('HMGET', K.job .. id, 'status', 'fence', 'priority', 'tenant', 'charge', 'kind')
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
    if ARGV[i + 5] ~= '' then
      learn(record[6], tonumber(ARGV[i + 5]), ARGV[i + 6] == '1')
    end
  elseif record[2] == fence then
    answer = 'known'
  end
  answers[#answers + 1] = answer
end
for _, whose in ipairs(order) do
  charge(owed[whose].priority, owed[whose].tenant, owed[whose].tokens)
end
write_estimates()
return answers
