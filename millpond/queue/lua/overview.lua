-- keys: active lane leases job
-- flags: no-writes
-- uses: clock
-- ARGV: most_tenants, most_leases
-- -> {{PRIORITY, TENANT, waiting, ...}, {WORKER, leases, ms until the first of them ends, ...}}
-- Reads only. Of each priority the tenants that are served next, and of the leases those that end next:
-- so many at most, which bounds the time of one call.

local now, lanes = clock_ms(), {}
for _, priority in ipairs({ 'interactive', 'normal', 'batch' }) do
  for _, tenant in ipairs(redis.call('ZRANGE', K.active .. priority, 0, ARGV[1] - 1)) do
    lanes[#lanes + 1] = priority
    lanes[#lanes + 1] = tenant
    lanes[#lanes + 1] = redis.call('ZCARD', K.lane .. priority .. ':' .. tenant)
  end
end

local found = redis.call('ZRANGE', K.leases, 0, ARGV[2] - 1, 'WITHSCORES')
local order, held, first = {}, {}, {}
for i = 1, #found, 2 do
  local worker = redis.call('HGET', K.job .. found[i], 'worker')
  if worker then
    if not held[worker] then
      order[#order + 1] = worker
      first[worker] = math.floor(found[i + 1] - now)
    end
    held[worker] = (held[worker] or 0) + 1
  end
end
local leases = {}
for _, worker in ipairs(order) do
  leases[#leases + 1] = worker
  leases[#leases + 1] = held[worker]
  leases[#leases + 1] = first[worker]
end
return { lanes, leases }
