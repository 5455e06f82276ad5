-- keys: job body counts open deadlines wake pending_interactive pending_normal pending_batch
-- ARGV: max_depth, then for each job: id, body, digest, priority, tenant, tokens, deadline_ms or '', streams '1'|'0', unfinished jobs that its tenant may have or ''
-- -> for each job two items: 'accepted' | 'known' | 'conflict' | 'full' | 'tenant_full', and its status, the depth or the tenant's unfinished jobs
-- Harmless when repeated: a known id with the same digest changes nothing. Each job is taken or refused
-- on its own.

local PRIORITIES = { 'interactive', 'normal', 'batch' }

local max_depth = tonumber(ARGV[1])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local created = string.format('%.0f', now)
local counts = redis.call('HMGET', K.counts, 'queued:interactive', 'queued:normal', 'queued:batch',
  'seq:interactive', 'seq:normal', 'seq:batch')
local depth, seqs, lanes = 0, {}, {}
for i, priority in ipairs(PRIORITIES) do
  depth = depth + tonumber(counts[i] or 0)
  seqs[priority] = tonumber(counts[i + 3] or 0)
  lanes[priority] = {}
end

local open = {} -- tenant -> its unfinished jobs, those of this call included
local function open_jobs(tenant)
  open[tenant] = open[tenant] or tonumber(redis.call('HGET', K.open, tenant) or 0)
  return open[tenant]
end

local answers = {}
for i = 2, #ARGV, 9 do
  local id, digest, priority, tenant, deadline_ms = ARGV[i], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 6]
  local job = K.job .. id
  local known = redis.call('HMGET', job, 'digest', 'status')
  local kind, detail
  if known[1] then
    kind, detail = known[1] == digest and 'known' or 'conflict', known[2]
  elseif depth >= max_depth then
    kind, detail = 'full', depth
  elseif ARGV[i + 8] ~= '' and open_jobs(tenant) >= tonumber(ARGV[i + 8]) then
    kind, detail = 'tenant_full', open_jobs(tenant)
  else
    kind, detail = 'accepted', 'queued'
    local lane = lanes[priority]
    lane[#lane + 1] = id
    depth = depth + 1
    open[tenant] = open_jobs(tenant) + 1
    redis.call('HSET', job, 'status', 'queued', 'priority', priority, 'tenant', tenant, 'tokens', ARGV[i + 5],
      'digest', digest, 'seq', string.format('%.0f', seqs[priority] + #lane), 'created', created, 'attempts', '0',
      'stream', ARGV[i + 7])
    if deadline_ms ~= '' then
      local deadline = string.format('%.0f', now + tonumber(deadline_ms))
      redis.call('HSET', job, 'deadline', deadline)
      redis.call('ZADD', K.deadlines, deadline, id)
    end
    redis.call('SET', K.body .. id, ARGV[i + 1])
    redis.call('HINCRBY', K.open, tenant, 1)
  end
  answers[#answers + 1] = kind
  answers[#answers + 1] = detail
end

local accepted = false
for _, priority in ipairs(PRIORITIES) do
  local lane = lanes[priority]
  if #lane > 0 then
    accepted = true
    redis.call('RPUSH', K['pending_' .. priority], unpack(lane))
    redis.call('HINCRBY', K.counts, 'queued:' .. priority, #lane)
    redis.call('HINCRBY', K.counts, 'seq:' .. priority, #lane)
  end
end
if accepted and redis.call('EXISTS', K.wake) == 0 then
  redis.call('LPUSH', K.wake, '1')
end
return answers
