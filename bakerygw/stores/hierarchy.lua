-- Follows a tenant's parents, in one step.
--
-- KEYS  none: those on the way can't be known, and Redis takes any key named here for one that is written, while the
--       gateway's user need not be allowed to write parents
-- ARGV  the tenant; what comes before and behind an id in a parent key; the most steps; the most bytes of an id
-- reply for each step the parent that is stored ('': none, or no id) and the milliseconds until that key expires
--       (-1: it does not); the last parent is '', or met before, or the last step's

local before, behind, steps, most = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])

local reply, tenant, met = {}, ARGV[1], {[ARGV[1]] = true}
for _ = 1, steps do
  local key = before .. tenant .. behind
  local parent = redis.pcall('GETRANGE', key, 0, most)
  if type(parent) ~= 'string' or #parent > most or not string.find(parent, '^[%w._-]+$') then
    parent = ''
  end
  reply[#reply + 1] = parent
  reply[#reply + 1] = redis.call('PTTL', key)
  if parent == '' or met[parent] then
    break
  end
  met[parent] = true
  tenant = parent
end
return reply
