-- One token wakes one idle worker; a claim that leaves jobs behind passes it on.
local function wake_worker()
  if redis.call('EXISTS', K.wake) == 0 then
    redis.call('LPUSH', K.wake, '1')
  end
end
