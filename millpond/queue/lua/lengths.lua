-- How long outputs get, learnt from the jobs that have ended. Prepended to every script that predicts or
-- learns.
--
-- K.lengths holds for each kind of job, and for all of them, "JOBS MEDIAN HIGH": how many have ended, and
-- estimates of the 50th and the 90th percentile of their output, as powers of two. Each job moves an
-- estimate a step towards it, weighed so that the moves cancel out at the percentile (stochastic
-- approximation). Steps shrink to a least one, with which a change of habits is followed.

local ALL = 'all'
local ENOUGH_JOBS = 20 -- before, a kind's estimate is worth less than that of all
local SHARES = { 0.5, 0.9 }
local FIRST_STEP, LEAST_STEP, SHRINKING = 2, 0.05, 0.7

local estimates = {}
local function estimate_of(kind)
  if not estimates[kind] then
    local words = string.gmatch(redis.call('HGET', K.lengths, kind) or '0', '%S+')
    estimates[kind] = { jobs = tonumber(words()), tonumber(words() or 0), tonumber(words() or 0) }
  end
  return estimates[kind]
end

local function tokens_of(power)
  return math.max(1, math.floor(2 ^ power + 0.5))
end

-- Tokens of output that a text of this kind has in half of the cases and in nine of ten, no more than
-- its part of `most`, if that is a number: of the job's `n` texts together. nil: not enough is known.
local function predict(kind, most, n)
  most = math.floor((tonumber(most) or math.huge) / n)
  for _, name in ipairs({ kind, ALL }) do
    local estimate = estimate_of(name)
    if estimate.jobs >= ENOUGH_JOBS then
      return math.min(most, tokens_of(estimate[1])), math.min(most, tokens_of(estimate[2]))
    end
  end
end

-- `cut`: the output was ended by its limit, so all that is known is that it would have been longer.
local function learn(kind, output, cut)
  local size = math.log(output) / math.log(2)
  for _, name in ipairs({ kind, ALL }) do
    local estimate = estimate_of(name)
    estimate.jobs = estimate.jobs + 1
    local step = math.max(LEAST_STEP, FIRST_STEP / estimate.jobs ^ SHRINKING)
    for i, share in ipairs(SHARES) do
      if estimate.jobs == 1 then
        estimate[i] = size
      elseif size > estimate[i] then
        estimate[i] = math.min(size, estimate[i] + step * share)
      elseif not cut then
        estimate[i] = math.max(size, estimate[i] - step * (1 - share))
      end
    end
    estimate.learnt = true
  end
end

local function write_estimates()
  for kind, estimate in pairs(estimates) do
    if estimate.learnt then
      local line = string.format('%.0f %.4f %.4f', estimate.jobs, estimate[1], estimate[2])
      redis.call('HSET', K.lengths, kind, line)
    end
  end
end
