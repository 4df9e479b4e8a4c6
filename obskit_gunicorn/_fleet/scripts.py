"""The scripts that the store runs: each is atomic, and touches one key.

The key is a hash, so that whatever removes it removes all of it. Its fields:

    format              of all that follows; another release may write another one
    epoch, begun        which epoch this is, and when it began, by the store's clock
    rev                 how often hosts were folded
    n, k<id>, i<digest> how many keys of metrics there are; each by its number; its number by digest
    hosts               the incarnations that were not folded, each followed by a space
    h<inc>              "sequence sequence-of-d time ended facts", the time by the store's clock
    d<inc>, g<inc>      what the host has counted; its figures
    b<inc>              what is not to be counted of it, for the base
    retired             the sums of all that were folded
    tombs               the folded incarnations, as "incarnation:time ", the oldest first; until
                        when the next three are kept
    f<inc>              at which sequence it was folded
    fd<inc>, fb<inc>    its last d and b

An *incarnation* is a directory's generation, from the moment that it is first published until it is
folded: put to the retired sums. If it is published again, it goes on as another incarnation, whose
base is what was folded. An *epoch* ends when the store has lost something.
"""

from __future__ import annotations

FORMAT = "1"

_BEGIN = (
    """
local K = KEYS[1]
local function get(field) return redis.call('HGET', K, field) end
local t = redis.call('TIME')
local now = t[1] .. '.' .. string.format('%06d', t[2])
local function begin(epoch)
  redis.call('HSET', K, 'format', '"""
    + FORMAT
    + """', 'epoch', epoch, 'begun', now, 'rev', 0, 'n', 0, 'hosts', '', 'tombs', '')
  return epoch
end
local format = get('format')
if format and format ~= '"""
    + FORMAT
    + """' then return {'FORMAT', format} end
local epoch = get('epoch')
"""
)

_BEGIN_ANYWAY = (
    _BEGIN
    + """
if not epoch then epoch = begin(ARGV[1]) end
"""
)

# ARGV: a new epoch, the incarnation.
# Returns: OK, epoch, sequence, base, sequence at which it was folded, its d then, its b then.
ENTER = (
    _BEGIN_ANYWAY
    + """
local inc = ARGV[2]
local head = get('h' .. inc)
local sequence = head and string.match(head, '^(%d+) ') or '0'
return {'OK', epoch, sequence, get('b' .. inc) or '', get('f' .. inc) or '',
        get('fd' .. inc) or '', get('fb' .. inc) or ''}
"""
)

# ARGV: a new epoch, then digest and key of each.
# Returns: OK, epoch, the number of each.
INTERN = (
    _BEGIN_ANYWAY
    + """
local out = {'OK', epoch}
local n = tonumber(get('n'))
for at = 2, #ARGV, 2 do
  local id = get('i' .. ARGV[at])
  if not id then
    id = n
    n = n + 1
    redis.call('HSET', K, 'i' .. ARGV[at], id, 'k' .. id, ARGV[at + 1])
  end
  out[#out + 1] = tonumber(id)
end
redis.call('HSET', K, 'n', n)
return out
"""
)

# ARGV: epoch, incarnation, sequence, whether it has ended, facts, d, b, g; an empty d or b is as
# before.
# Returns: OK or, where anything is not as the publisher believes, NO.
PUBLISH = (
    _BEGIN
    + """
local inc, sequence = ARGV[2], ARGV[3]
if epoch ~= ARGV[1] or get('f' .. inc) then return {'NO'} end
local head = get('h' .. inc)
local before, changed = '0', '0'
if head then before, changed = string.match(head, '^(%d+) (%d+) ') end
if tonumber(before) ~= tonumber(sequence) - 1 then return {'NO'} end
if not head then redis.call('HSET', K, 'hosts', get('hosts') .. inc .. ' ') end
if ARGV[6] ~= '' then
  changed = sequence
  redis.call('HSET', K, 'd' .. inc, ARGV[6])
end
if ARGV[7] ~= '' then redis.call('HSET', K, 'b' .. inc, ARGV[7]) end
redis.call('HSET', K, 'g' .. inc, ARGV[8], 'h' .. inc,
           sequence .. ' ' .. changed .. ' ' .. now .. ' ' .. ARGV[4] .. ' ' .. ARGV[5])
return {'OK'}
"""
)

# ARGV: epoch, number of keys, rev that are known; then each known incarnation and its sequences.
# Returns: OK, epoch, now, begun, rev, retired, {incarnation, h, d, g, ...}, {key, ...}; what is
# known already is empty.
FETCH = (
    _BEGIN
    + """
if not epoch then return {'OK', '', now, '', '0', '', {}, {}} end
local sequences, changes, from, known_rev = {}, {}, 0, ''
if epoch == ARGV[1] then
  from = tonumber(ARGV[2])
  known_rev = ARGV[3]
  for at = 4, #ARGV, 3 do
    sequences[ARGV[at]] = ARGV[at + 1]
    changes[ARGV[at]] = ARGV[at + 2]
  end
end
local rev, retired, hosts, keys = get('rev'), '', {}, {}
if rev ~= known_rev then retired = get('retired') or '' end
for inc in string.gmatch(get('hosts'), '%S+') do
  local head = get('h' .. inc)
  local sequence, changed = string.match(head, '^(%d+) (%d+) ')
  local d, g = '', ''
  if changes[inc] ~= changed then d = get('d' .. inc) or '' end
  if sequences[inc] ~= sequence then g = get('g' .. inc) or '' end
  hosts[#hosts + 1] = inc
  hosts[#hosts + 1] = head
  hosts[#hosts + 1] = d
  hosts[#hosts + 1] = g
end
for id = from, tonumber(get('n')) - 1 do keys[#keys + 1] = get('k' .. id) end
return {'OK', epoch, now, get('begun'), rev, retired, hosts, keys}
"""
)

# ARGV: epoch, rev, retired, how many tombs at most; then each incarnation, its sequence, and how
# many seconds its tomb is kept. All or nothing.
# Returns: OK or NO.
FOLD = (
    _BEGIN
    + """
if epoch ~= ARGV[1] or get('rev') ~= ARGV[2] then return {'NO'} end
local gone = {}
for at = 5, #ARGV, 3 do
  local head = get('h' .. ARGV[at])
  if not head or string.match(head, '^(%d+) ') ~= ARGV[at + 1] then return {'NO'} end
  gone[ARGV[at]] = true
end
redis.call('HSET', K, 'retired', ARGV[3])
redis.call('HINCRBY', K, 'rev', 1)
local tombs, kept = {}, {}
for tomb in string.gmatch(get('tombs'), '%S+') do tombs[#tombs + 1] = tomb end
for at = 5, #ARGV, 3 do
  local inc = ARGV[at]
  redis.call('HSET', K, 'f' .. inc, ARGV[at + 1],
             'fd' .. inc, get('d' .. inc) or '', 'fb' .. inc, get('b' .. inc) or '')
  redis.call('HDEL', K, 'h' .. inc, 'd' .. inc, 'g' .. inc, 'b' .. inc)
  tombs[#tombs + 1] = inc .. ':' .. string.format('%.0f', tonumber(now) + tonumber(ARGV[at + 2]))
end
for at, tomb in ipairs(tombs) do
  local inc, time = string.match(tomb, '^(.*):(%d+)$')
  if #tombs - at >= tonumber(ARGV[4]) or tonumber(now) > tonumber(time) then
    redis.call('HDEL', K, 'f' .. inc, 'fd' .. inc, 'fb' .. inc)
  else
    kept[#kept + 1] = tomb .. ' '
  end
end
local left = {}
for inc in string.gmatch(get('hosts'), '%S+') do
  if not gone[inc] then left[#left + 1] = inc .. ' ' end
end
redis.call('HSET', K, 'hosts', table.concat(left), 'tombs', table.concat(kept))
return {'OK'}
"""
)

# ARGV: the epoch that has lost something, or nothing for any; the new one.
# Returns: OK, the epoch.
RESET = (
    _BEGIN
    + """
if ARGV[1] == '' or epoch == ARGV[1] then
  redis.call('DEL', K)
  epoch = begin(ARGV[2])
end
return {'OK', epoch or ''}
"""
)
