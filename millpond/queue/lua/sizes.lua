-- What fits which worker, by the registry. Prepended to claim.

-- Whether another live worker may run this many texts of one job, each of so many tokens, prompt
-- included. One that loads has no size yet and may.
local function another_fits(worker, texts, row_tokens, now, alive_ms)
  local all = redis.call('HGETALL', K.workers)
  for i = 1, #all, 2 do
    local beat, entry = string.match(all[i + 1], '^(%d+) (.*)$')
    if all[i] ~= worker and beat and tonumber(beat) + alive_ms >= now then
      local ok, state = pcall(cjson.decode, entry)
      if ok and state.state == 'loading' then
        return true
      end
      if ok and state.state == 'ready' and texts <= (state.slots or 0)
        and row_tokens <= math.min(state.context_tokens or 0, state.capacity_tokens or 0) then
        return true
      end
    end
  end
  return false
end
