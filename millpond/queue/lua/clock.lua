-- The server's clock: no other clock decides anything.

-- Numbers above 10^14 must not be written with an exponent.
local function int(number)
  return string.format('%.0f', number)
end

local function clock_us()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local function clock_ms()
  return math.floor(clock_us() / 1000)
end
