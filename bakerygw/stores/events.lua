-- The tenants' histories of alerts: places alerts, reads them, and counts eras, each in one step on Redis' own clock.
-- stores/memory_events.py does the same in process; both are held to the same results by the tests.
--
-- KEYS[1]  the era: '<era> <greatest number that any era or epoch has had>'
-- of a tenant: its head, '<era> <epoch> <offset>', and a stream with an entry for each alert that is kept, whose id is
--       the alert's own, '<epoch>-<offset>', and whose fields are t, the millisecond it came, and p, its payload
-- ARGV  what to do; the greatest number of any era or epoch, and the era, that the caller has ever met;
--       the most alerts of a tenant to keep, for how many milliseconds, and for how many to keep its head
-- reply a number first, 1 if what cannot be ours had to be dropped, else 0; or a text: what Redis refuses to do here
--
-- place: KEYS the outbox's times and bodies; the head and the stream of each tenant; for each alert the memory of it
--        ARGV the milliseconds to remember an alert for; the number of tenants, and for each its id and the greatest
--        epoch and offset that the caller has met there; for each alert the number of its tenant, 1 if it is for the
--        outbox, and the payload
--        reply for each alert its epoch, its offset, and 1 if it was placed now
-- publish: as place for one alert of one tenant; besides
--        KEYS the tenant's alerts by their own ids, and the order of these; ARGV the channel, and a digest of the id or ''
-- read:  KEYS the tenant's head and stream; ARGV the greatest epoch and offset that the caller has met there; the epoch
--        and offset behind which to read; the most alerts, and the most bytes of payload unless one alone has more
--        reply the head's epoch and offset, the offset of the oldest that is kept, that of the first that follows, and
--        the payloads
-- era:   ARGV the era that is to end (-1: none). reply the present era

local MAX_DIGITS = 15 -- of numbers that Lua can count with
local CHUNK = 16
local BROKEN = 'BROKEN'

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
-- Eras and epochs are milliseconds, or a little more; what lies further ahead was forged, or read off a wrong clock.
local latest = now + 366 * 86400000
local keep, keep_ms, head_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local mended = 0

local function text(number)
  return string.format('%.0f', number)
end

local function number(digits)
  return digits and #digits <= MAX_DIGITS and tonumber(digits) or nil
end

-- What the caller has met of eras and epochs.
local function met(argument)
  local its = tonumber(argument)
  return its <= latest and its or 0
end

local known_era = met(ARGV[3])

-- The two or three numbers that a value consists of, an era and an epoch first; nothing for a value that is none of ours.
local function numbers(key, pattern)
  local value = redis.pcall('GETRANGE', key, 0, 3 * MAX_DIGITS + 2)
  if type(value) ~= 'string' then
    return nil
  end
  local a, b, c = string.match(value, pattern)
  a, b = number(a), number(b)
  if not a or not b or a > latest or b > latest then
    return nil
  end
  return a, b, number(c)
end

local era, top = numbers(KEYS[1], '^(%d+) (%d+)$')
top = math.max(top or 0, era or 0, met(ARGV[2]))

local function begin_era()
  top = math.max(now, top + 1)
  era = top
  redis.call('SET', KEYS[1], text(era) .. ' ' .. text(top))
end

-- One that is older than the caller knows is of a Redis that has lost what was written last.
if not era or era < known_era then
  begin_era()
end

local function save(history)
  local its = text(history.era) .. ' ' .. text(history.epoch) .. ' ' .. text(history.offset)
  redis.call('SET', history.head, its, 'PX', text(head_ms))
end

local function history_of(head, stream, known_epoch, known_offset)
  local its_era, epoch, offset = numbers(head, '^(%d+) (%d+) (%d+)$')
  local history = {head = head, stream = stream, era = its_era, epoch = epoch, offset = offset}
  local lost = not offset or epoch < known_epoch or (epoch == known_epoch and offset < known_offset)
  if lost or its_era ~= era then
    redis.call('DEL', stream)
    top = math.max(now, top + 1)
    redis.call('SET', KEYS[1], text(era) .. ' ' .. text(top))
    history.era, history.epoch, history.offset = era, top, 0
    save(history)
  end
  return history
end

local function forget(history)
  redis.call('DEL', history.stream)
  mended = 1
end

-- The offset, the moment and the payload of an entry of this history.
local function entry_of(history, entry)
  local fields = entry[2]
  local epoch, offset = string.match(entry[1], '^(%d+)-(%d+)$')
  offset = number(offset)
  local at = number(fields[2])
  if number(epoch) ~= history.epoch or not offset or not at or fields[1] ~= 't' or fields[3] ~= 'p' or #fields ~= 4 then
    error(BROKEN, 0)
  end
  return offset, at, fields[4]
end

local function id_of(history, offset)
  return text(history.epoch) .. '-' .. text(offset)
end

-- Lets go of what is past its age. The offset of the oldest that is kept, or nothing.
local function oldest_of(history)
  local entry = redis.call('XRANGE', history.stream, '-', '+', 'COUNT', 1)[1]
  if not entry then
    return nil
  end
  local past, at = entry_of(history, entry)
  if past > history.offset then
    error(BROKEN, 0)
  end
  if at > now - keep_ms then
    return math.max(past, history.offset - keep + 1)
  end
  -- They came one after the other: halving finds where the young begin, however many are past.
  local young = history.offset + 1
  while young - past > 1 do
    local middle = math.floor((past + young) / 2)
    entry = redis.call('XRANGE', history.stream, id_of(history, middle), '+', 'COUNT', 1)[1]
    local offset
    if entry then
      offset, at = entry_of(history, entry)
    end
    if offset ~= middle then
      error(BROKEN, 0)
    end
    if at > now - keep_ms then
      young = middle
    else
      past = middle
    end
  end
  if young > history.offset then
    redis.call('DEL', history.stream)
    return nil
  end
  redis.call('XTRIM', history.stream, 'MINID', id_of(history, young))
  return math.max(young, history.offset - keep + 1)
end

-- Does something with the stream; if it turns out not to be ours it is dropped, and `otherwise` is the result.
local function guarded(history, work, otherwise)
  local ok, found = pcall(work)
  if ok then
    return found
  end
  local why = type(found) == 'table' and found.err or tostring(found)
  if why ~= BROKEN and not string.find(why, 'WRONGTYPE', 1, true) then
    error(found, 0)
  end
  forget(history)
  return otherwise
end

-- A command on a key of ours; a value of another type there is dropped.
local function forced(command, key, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) == 'table' and reply.err then
    if not string.find(reply.err, 'WRONGTYPE', 1, true) then
      error(reply.err, 0)
    end
    redis.call('DEL', key)
    mended = 1
    return redis.call(command, key, ...)
  end
  return reply
end

-- Where an alert stands by this memory of it; nothing if that cannot be.
local function place_of(history, value)
  if type(value) ~= 'string' then
    return nil
  end
  local epoch, offset = string.match(value, '^(%d+)-(%d+)$')
  epoch, offset = number(epoch), number(offset)
  if not offset or epoch > history.epoch or (epoch == history.epoch and offset > history.offset) then
    return nil
  end
  return epoch, offset
end

-- Where an alert stands that is remembered. A memory that would last for much longer than any is of before Redis' clock
-- was set back, and would swallow whatever says the same until that moment comes again.
local function seen(history, key, memory_ms)
  local epoch, offset = place_of(history, redis.pcall('GETRANGE', key, 0, 2 * MAX_DIGITS))
  if offset and redis.call('PTTL', key) > 2 * tonumber(memory_ms) then
    return nil
  end
  return epoch, offset
end

-- An alert is remembered last: one that could not be placed is none that was.
local function place(history, tenant, memory, memory_ms, notify, payload)
  local offset = history.offset + 1
  local id = id_of(history, offset)
  if notify == '1' then
    local member = tenant .. ':' .. id
    forced('HSET', KEYS[3], member, payload)
    forced('ZADD', KEYS[2], text(now), member)
  end
  local added = redis.pcall('XADD', history.stream, 'MAXLEN', text(keep), id, 't', text(now), 'p', payload)
  if type(added) == 'table' then
    if not string.find(added.err, 'WRONGTYPE', 1, true) and not string.find(added.err, 'equal or smaller', 1, true) then
      error(added.err, 0)
    end
    forget(history)
    redis.call('XADD', history.stream, id, 't', text(now), 'p', payload)
  end
  history.offset, history.touched = offset, true
  redis.call('SET', memory, id, 'PX', memory_ms)
  return offset
end

local function settle(history)
  save(history)
  guarded(history, function()
    redis.call('PEXPIRE', history.stream, text(keep_ms))
    return oldest_of(history)
  end)
end

local function place_all()
  local tenants, reply, at = tonumber(ARGV[8]), {0}, 9
  local histories, memory = {}, 4 + 2 * tonumber(ARGV[8])
  for i = 1, tenants do
    local known_epoch, known_offset = met(ARGV[at + 1]), tonumber(ARGV[at + 2])
    histories[i] = history_of(KEYS[2 + 2 * i], KEYS[3 + 2 * i], known_epoch, known_offset)
    histories[i].tenant = ARGV[at]
    at = at + 3
  end
  local ok, why = pcall(function()
    for i = memory, #KEYS do
      local history = histories[tonumber(ARGV[at])]
      local epoch, offset = seen(history, KEYS[i], ARGV[7])
      local fresh = not offset
      if fresh then
        epoch = history.epoch
        offset = place(history, history.tenant, KEYS[i], ARGV[7], ARGV[at + 1], ARGV[at + 2])
      end
      reply[#reply + 1] = epoch
      reply[#reply + 1] = offset
      reply[#reply + 1] = fresh and 1 or 0
      at = at + 3
    end
  end)
  for i = 1, tenants do
    if histories[i].touched then
      settle(histories[i])
    end
  end
  if not ok then
    error(why, 0)
  end
  return reply
end

local function remember(ids, order, digest, id)
  forced('HSET', ids, digest, id)
  local count = forced('RPUSH', order, digest)
  while count > keep do
    redis.call('HDEL', ids, redis.call('LPOP', order))
    count = count - 1
  end
  redis.call('PEXPIRE', ids, text(keep_ms))
  redis.call('PEXPIRE', order, text(keep_ms))
end

local function publish()
  local history = history_of(KEYS[4], KEYS[5], met(ARGV[10]), tonumber(ARGV[11]))
  local memory, ids, order, payload, channel, digest = KEYS[6], KEYS[7], KEYS[8], ARGV[14], ARGV[15], ARGV[16]
  local epoch, offset
  if digest ~= '' then
    epoch, offset = place_of(history, redis.pcall('HGET', ids, digest))
  end
  if not offset then
    epoch, offset = seen(history, memory, ARGV[7])
  end
  if offset then
    return {0, epoch, offset, 0}
  end
  save(history) -- a Redis that takes no writes says so before anybody has heard of the alert
  local told = redis.pcall('PUBLISH', channel, payload)
  if type(told) == 'table' then
    return {'PUBLISH on ' .. channel .. ': ' .. tostring(told.err)}
  end
  offset = place(history, ARGV[9], memory, ARGV[7], ARGV[13], payload)
  settle(history)
  if digest ~= '' then
    remember(ids, order, digest, id_of(history, offset))
  end
  return {0, history.epoch, offset, 1}
end

-- Adds to the reply what is kept from `offset` on.
local function add_page(history, reply, offset, most, bytes)
  local size, last = 0, math.min(history.offset, offset + most - 1)
  while offset <= last do
    local count = math.min(CHUNK, last - offset + 1)
    local page = redis.call('XRANGE', history.stream, id_of(history, offset), '+', 'COUNT', count)
    if #page == 0 then
      error(BROKEN, 0)
    end
    for i = 1, #page do
      local its, _, payload = entry_of(history, page[i])
      if its ~= offset then
        error(BROKEN, 0)
      end
      size = size + #payload
      if size > bytes and #reply > 5 then
        return
      end
      reply[#reply + 1] = payload
      offset = offset + 1
    end
  end
end

local function read()
  local history = history_of(KEYS[2], KEYS[3], met(ARGV[7]), tonumber(ARGV[8]))
  local epoch, after, count, bytes = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
  if redis.call('PTTL', history.head) < head_ms * 0.9 then
    redis.call('PEXPIRE', history.head, text(head_ms))
  end
  local none = {0, history.epoch, history.offset, history.offset + 1, history.offset + 1}
  return guarded(history, function()
    local first = oldest_of(history)
    if not first or epoch > history.epoch then
      none[4] = first or none[4]
      return none
    end
    local from = epoch < history.epoch and first or math.max(first, after + 1)
    local reply = {0, history.epoch, history.offset, first, from}
    add_page(history, reply, from, count, bytes)
    return reply
  end, none)
end

local function count_era()
  if tonumber(ARGV[7]) == era then
    begin_era()
  end
  return {0, era}
end

local ok, reply = pcall(({place = place_all, publish = publish, read = read, era = count_era})[ARGV[1]])
if not ok then
  local why = type(reply) == 'table' and reply.err or tostring(reply)
  -- What one key or a narrow ACL brings about says nothing about the server, so it is no error of Redis'.
  for _, ours in ipairs({'WRONGTYPE', 'NOPERM', 'user executing the script'}) do
    if string.find(why, ours, 1, true) then
      return {why}
    end
  end
  return redis.error_reply(why)
end
if reply[1] == 0 then
  reply[1] = mended
end
return reply
