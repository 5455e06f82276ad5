-- The last claim of each worker, so that a claim whose answer was lost can be made again and hands out
-- the same jobs: else nobody would renew them, and when their leases end, everything that the worker
-- holds counts as a dead worker's. Prepended to claim.
--
-- Kept for as long as the leases at least: "NONCE ALONE FIRST_FENCE ID ID ...".

local function remember_claim(worker, nonce, claimed, alone, lease_ms)
  local words = { nonce, alone and '1' or '0', int(claimed[1][2]) }
  for _, job in ipairs(claimed) do
    words[#words + 1] = job[1]
  end
  redis.call('SET', K.last_claim .. worker, table.concat(words, ' '), 'PX', int(lease_ms))
end

-- What the claim of that nonce gave and the worker still holds, under leases that begin anew. nil: it
-- is not the worker's last one. A later fence of the same worker is not of a later claim, which would
-- be remembered in its place.
local function claimed_before(worker, nonce, now, lease_ms)
  local word = string.gmatch(redis.call('GET', K.last_claim .. worker) or '', '%S+')
  if word() ~= nonce then
    return nil
  end
  local alone, first_fence, claimed = word() == '1', tonumber(word()), {}
  for id in word do
    local record = redis.call('HMGET', K.job .. id, 'status', 'worker', 'fence', 'attempts', 'created',
      'kind', 'most', 'n', 'trace', 'kept')
    local body = redis.call('GET', K.body .. id)
    if body and record[1] == 'running' and record[2] == worker and tonumber(record[3]) >= first_fence then
      redis.call('ZADD', K.leases, int(now + lease_ms), id)
      local _, high = predict(record[6], record[7], record[8] or 1)
      claimed[#claimed + 1] = { id, tonumber(record[3]), tonumber(record[4]), record[5], body, high or false, record[9],
        read_kept(id, record[8], record[10]) }
    end
  end
  redis.call('PEXPIRE', K.last_claim .. worker, int(lease_ms))
  return claimed, alone
end
