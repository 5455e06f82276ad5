-- keys: about workers counts
-- flags: allow-oom
-- uses: clock
-- ARGV: worker or '' for somebody who only looks, version, model, identity, registry entry, alive_ms
-- -> {'joined', the model's name here} | {'version', the queue's} | {'model', its name, its identity, other workers alive, unfinished jobs, ms since the last beat of those}
-- The queue is what those who live or wait in it need. While a worker lives or a job is unfinished, its
-- version and its model stay; else whoever joins makes them his own.

local worker, version, model, identity = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local now = clock_ms()

local alive, freshest = 0, math.huge
local all = redis.call('HGETALL', K.workers)
for i = 1, #all, 2 do
  local age = now - tonumber(string.match(all[i + 1], '^%d+') or 0)
  if all[i] ~= worker and age <= tonumber(ARGV[6]) then
    alive, freshest = alive + 1, math.min(freshest, age)
  end
end
local unfinished = 0
for _, number in ipairs(redis.call('HMGET', K.counts, 'queued:interactive', 'queued:normal', 'queued:batch', 'running')) do
  unfinished = unfinished + tonumber(number or 0)
end

local about = redis.call('HMGET', K.about, 'version', 'model', 'identity')
local in_use = alive > 0 or unfinished > 0
if about[1] and about[1] ~= version and in_use then
  return { 'version', about[1] }
end
redis.call('HSET', K.about, 'version', version)
if worker == '' then
  return { 'joined', about[2] or '' }
end
if not about[3] or (about[3] ~= identity and not in_use) then
  about[2] = model
elseif about[3] ~= identity then
  return { 'model', about[2], about[3], alive, unfinished, alive > 0 and freshest or -1 }
end
redis.call('HSET', K.about, 'model', about[2], 'identity', identity)
redis.call('HSET', K.workers, worker, int(now) .. ' ' .. ARGV[5])
return { 'joined', about[2] }
