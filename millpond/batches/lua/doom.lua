-- keys: doomed
-- uses: clock
-- ARGV: ms from now, objects
-- An object that is about to be written: if no record names it by then, it is removed.

local at = int(clock_ms() + tonumber(ARGV[1]))
for i = 2, #ARGV do
  redis.call('ZADD', K.doomed, at, ARGV[i])
end
