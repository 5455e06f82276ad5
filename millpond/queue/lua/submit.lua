-- keys: job body counts open deadlines wake lane active idle weights lengths stored delivery deliveries endpoints
-- uses: clock lanes lengths waking stored webhooks
-- ARGV: max_depth, ageing_ms, nonce, bytes that a tenant may store, then for each job: id, body, digest, priority, tenant, kind, prompt tokens, tokens, output tokens at most or '', deadline_ms or '', streams '1'|'0', unfinished jobs that its tenant may have or '', texts, bytes of the metadata at the head of the body or '', bytes that its tenant may store if others or '', traceparent or '', url of its webhook or ''
-- -> for each job two items: 'accepted' | 'known' | 'conflict' | 'full' | 'tenant_full' | 'tenant_bytes', and its status, the depth, the tenant's unfinished jobs or the bytes stored for it
-- Harmless when repeated: a known id with the same digest changes nothing. With the nonce under which it was
-- accepted the answer is 'accepted' again: the first one was lost. Each job is taken or refused on its own.

local PRIORITIES = { 'interactive', 'normal', 'batch' }

local FIRST, FIELDS = 5, 17
local max_depth, ageing_us, nonce = tonumber(ARGV[1]), tonumber(ARGV[2]) * 1000, ARGV[3]
local now_us = clock_us()
local now = math.floor(now_us / 1000)
local created = int(now)
local counts = redis.call('HMGET', K.counts, 'queued:interactive', 'queued:normal', 'queued:batch')
local depth, accepted = 0, {}
for i, priority in ipairs(PRIORITIES) do
  depth = depth + tonumber(counts[i] or 0)
  accepted[priority] = 0
end
local groups, lanes = {}, {} -- what goes into each lane, and the lanes in the order of their first job

local function queue(id, priority, tenant, order)
  local lane = lane_of(priority, tenant)
  if not groups[lane] then
    groups[lane] = { priority = priority, tenant = tenant, members = {} }
    lanes[#lanes + 1] = lane
  end
  local members = groups[lane].members
  members[#members + 1] = order
  members[#members + 1] = id
  accepted[priority] = accepted[priority] + 1
end

local open = {} -- tenant -> its unfinished jobs, those of this call included
local function open_jobs(tenant)
  open[tenant] = open[tenant] or tonumber(redis.call('HGET', K.open, tenant) or 0)
  return open[tenant]
end

local stored, added = {}, {} -- tenant -> bytes stored for it, those of this call included; those alone
local function bytes_of(tenant)
  stored[tenant] = stored[tenant] or stored_bytes(tenant, now)
  return stored[tenant]
end

local answers = {}
for i = FIRST, #ARGV, FIELDS do
  local id, digest, priority, tenant = ARGV[i], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local kind, most, deadline_ms = ARGV[i + 5], ARGV[i + 8], ARGV[i + 9]
  local job = K.job .. id
  local known = redis.call('HMGET', job, 'digest', 'status')
  local answer, detail
  if known[1] then
    local same, accepted_under = string.match(known[1], '^(%S+) (%S+)$')
    answer, detail = 'conflict', known[2]
    if same == digest then
      answer = accepted_under == nonce and 'accepted' or 'known'
      -- A write of what stands there: whoever waits for replicas waits for his last write, so for the job.
      redis.call('HSET', job, 'digest', known[1])
    end
  elseif depth >= max_depth then
    answer, detail = 'full', depth
  elseif ARGV[i + 11] ~= '' and open_jobs(tenant) >= tonumber(ARGV[i + 11]) then
    answer, detail = 'tenant_full', open_jobs(tenant)
  elseif bytes_of(tenant) + #ARGV[i + 1] > tonumber(ARGV[i + 14] ~= '' and ARGV[i + 14] or ARGV[4]) then
    answer, detail = 'tenant_bytes', bytes_of(tenant)
  else
    answer, detail = 'accepted', 'queued'
    depth = depth + 1
    open[tenant] = open_jobs(tenant) + 1
    stored[tenant] = bytes_of(tenant) + #ARGV[i + 1]
    added[tenant] = (added[tenant] or 0) + #ARGV[i + 1]
    -- A call takes longer than a microsecond for each job, so the next call's come after these.
    local order = now_us + (i - FIRST) / FIELDS
    if ageing_us > 0 then
      order = order + ageing_us * (predict(kind, most, ARGV[i + 12]) or 0)
    end
    order = int(order)
    queue(id, priority, tenant, order)
    redis.call('HSET', job, 'status', 'queued', 'priority', priority, 'tenant', tenant, 'kind', kind,
      'prompt', ARGV[i + 6], 'tokens', ARGV[i + 7], 'most', most, 'digest', digest .. ' ' .. nonce, 'order', order,
      'created', created, 'attempts', '0', 'stream', ARGV[i + 10])
    if ARGV[i + 12] ~= '1' then
      redis.call('HSET', job, 'n', ARGV[i + 12])
    end
    if ARGV[i + 13] ~= '' then
      redis.call('HSET', job, 'metadata', ARGV[i + 13])
    end
    if ARGV[i + 15] ~= '' then
      redis.call('HSET', job, 'trace', ARGV[i + 15])
    end
    if ARGV[i + 16] ~= '' then
      redis.call('HSET', job, 'webhook', '1')
      name_receiver(id, ARGV[i + 16])
    end
    if deadline_ms ~= '' then
      local deadline = int(now + tonumber(deadline_ms))
      redis.call('HSET', job, 'deadline', deadline)
      redis.call('ZADD', K.deadlines, deadline, id)
    end
    redis.call('SET', K.body .. id, ARGV[i + 1])
    redis.call('HINCRBY', K.open, tenant, 1)
  end
  answers[#answers + 1] = answer
  answers[#answers + 1] = detail
end

for tenant, bytes in pairs(added) do
  store_bodies(tenant, bytes)
end
for _, lane in ipairs(lanes) do
  local group = groups[lane]
  redis.call('ZADD', lane, unpack(group.members))
  join(group.priority, group.tenant)
end
for _, priority in ipairs(PRIORITIES) do
  if accepted[priority] > 0 then
    redis.call('HINCRBY', K.counts, 'queued:' .. priority, accepted[priority])
    redis.call('HINCRBY', K.counts, 'accepted:' .. priority, accepted[priority])
  end
end
if #lanes > 0 then
  wake_worker()
end
return answers
