--- Cache: results are kept for a while, and concurrent calls for one key share one execution.
--
-- The execution that calls share (a "flight") is a task of nobody: whoever waits for it may be
-- cancelled without ending it for the others. The last one who leaves cancels it.

local check = require "opero.check"
local core = require "opero.core"
local events = require "opero.events"
local outcome = require "opero.outcome"

---@class opero.CacheConfig
---@field ttl number seconds for which a result is good; required, > 0; may be infinite
---@field max_entries integer? of so many calls at most something is kept; those that were not used
---  for longest go first; default 1000
---@field key (fun(...): any)? of the arguments of a call: calls of one function with one key are
---  the same; nil: this call goes past the cache; default: the arguments, which have to be scalars
---@field negative_ttl number? seconds for which a failure is good; default 0: not at all
---@field stale_while_error number? seconds after its ttl in which a result still serves when the
---  function fails; default 0

local cache = {}

local now, epoch = core.now, core.epoch

local function is_duration(value)
  return type(value) == "number" and value == value
end

---@type opero.check.Spec
cache.options = {
  fields = {
    ttl = {
      check = function(value, path)
        if not is_duration(value) or value <= 0 then
          check.fail(path, value, "a number > 0")
        end
        return value
      end,
      required = true,
    },
    max_entries = { type = "integer", min = 1, default = 1000 },
    key = { check = check.callable },
    negative_ttl = { type = "number", min = 0, default = 0 },
    stale_while_error = { type = "number", min = 0, default = 0 },
  },
}

--- The option `cache_config`.
---@type opero.check.Field
cache.field = { type = "options", options = cache.options }

--- Checks and completes a table of options. Raises ConfigError.
---@type fun(given: opero.CacheConfig): opero.CacheConfig
cache.config = check.constructor("CacheConfig", cache.options)

-- ---- keys ---------------------------------------------------------------------------------------

local SCALAR <const> = { ["nil"] = true, boolean = true, number = true, string = true }

-- One that is the same for the same arguments alone: a single one that can be a key itself; else
-- they are written down one after the other, strings with their length. That ends with a zero, so
-- no string that does may be a key itself.
local function key_of_arguments(...)
  local count = select("#", ...)
  local first = ...
  if count == 1 and type(first) == "string" and first:byte(-1) ~= 0 then
    return first
  elseif count == 1 and math.type(first) == "integer" then
    return first
  end
  local parts = { count .. ":" }
  for i = 1, count do
    local value = select(i, ...)
    local kind = type(value)
    if not SCALAR[kind] then
      check.fail("cache_config.key", value,
        ("scalar arguments where there is no function to make the key, at argument %d"):format(i))
    elseif kind == "string" then
      parts[i + 1] = ("s%d:%s"):format(#value, value)
    elseif kind == "number" then
      parts[i + 1] = (math.type(value) == "integer" and "i%d;" or "f%a;"):format(value)
    else
      parts[i + 1] = tostring(value) .. ";"
    end
  end
  return table.concat(parts) .. "\0"
end

-- ---- what is kept -------------------------------------------------------------------------------

---@class opero.cache.Entry in a ring, from the one used last to the one not used for longest
---@field fn function
---@field key any
---@field results table? with n
---@field expires number until when they are good
---@field failure table? { err }
---@field failure_expires number
---@field newer opero.cache.Entry
---@field older opero.cache.Entry

---@class opero.cache.Store what there is under one clock
---@field epoch integer
---@field ring opero.cache.Entry
---@field count integer entries in the ring
---@field entries table<function, table<any, opero.cache.Entry>>
---@field flights table<function, table<any, opero.cache.Flight>> executions under way

local function store_of(self)
  local store = self.store
  if not store or store.epoch ~= epoch() then
    local ring = {}
    ring.newer, ring.older = ring, ring
    store = { epoch = epoch(), ring = ring, count = 0, entries = {}, flights = {} }
    self.store = store
  end
  return store
end

-- Both tables of a store have a table for each function, as long as there is something in it.
local function find(tables, fn, key)
  local keys = tables[fn]
  return keys and keys[key]
end

local function put(tables, fn, key, value)
  local keys = tables[fn]
  if not keys then
    keys = {}
    tables[fn] = keys
  end
  keys[key] = value
end

local function take(tables, fn, key)
  local keys = tables[fn]
  keys[key] = nil
  if next(keys) == nil then
    tables[fn] = nil
  end
end

local function unlink(entry)
  entry.newer.older, entry.older.newer = entry.older, entry.newer
end

local function link_first(store, entry)
  local ring = store.ring
  entry.newer, entry.older = ring, ring.older
  ring.older.newer, ring.older = entry, entry
end

local function drop(store, entry)
  unlink(entry)
  store.count = store.count - 1
  take(store.entries, entry.fn, entry.key)
end

-- What is kept of a call, and moved to the front.
local function look_up(store, fn, key)
  local entry = find(store.entries, fn, key)
  if entry and store.ring.older ~= entry then
    unlink(entry)
    link_first(store, entry)
  end
  return entry
end

-- The same; made if it is not there.
local function entry_for(self, store, fn, key)
  local entry = look_up(store, fn, key)
  if entry then
    return entry
  end
  if store.count >= self.max_entries then
    drop(store, store.ring.newer)
  end
  entry = { fn = fn, key = key, expires = -math.huge, failure_expires = -math.huge }
  put(store.entries, fn, key, entry)
  link_first(store, entry)
  store.count = store.count + 1
  return entry
end

-- Keeps what has come of an execution.
local function keep(self, store, fn, key, results, err)
  local time = now()
  if results then
    local entry = entry_for(self, store, fn, key)
    entry.results, entry.expires = results, time + self.ttl
    entry.failure, entry.failure_expires = nil, -math.huge
  elseif outcome.is_final(err) then
    return -- it says nothing about the next one
  elseif self.negative_ttl > 0 then
    local entry = entry_for(self, store, fn, key)
    entry.failure, entry.failure_expires = { err }, time + self.negative_ttl
  else
    local entry = find(store.entries, fn, key)
    if entry and time > entry.expires + self.stale then
      drop(store, entry)
    end
  end
end

-- ---- flights ------------------------------------------------------------------------------------

---@class opero.cache.Flight an execution that calls share
---@field passengers integer who waits for it
---@field landed opero.Event
---@field results table? with n
---@field failure table? { err }
---@field task opero.Task

-- Nobody boards it from now on.
local function close_gate(store, flight, fn, key)
  if find(store.flights, fn, key) == flight then
    take(store.flights, fn, key)
  end
end

local function fly(self, store, flight, fn, key, ...)
  local results, err = outcome.keep(self.next_layer(fn, ...))
  flight.results, flight.failure = results, not results and { err } or nil
  close_gate(store, flight, fn, key)
  keep(self, store, fn, key, results, err)
  flight.landed:set()
end

-- Gives up a place in a flight however its wait ends; the last one ends it, and waits for that.
local passenger_mt = {
  __close = function(passenger)
    local flight = passenger.flight
    flight.passengers = flight.passengers - 1
    if flight.passengers == 0 and not flight.results and not flight.failure then
      close_gate(passenger.store, flight, passenger.fn, passenger.key)
      flight.task:cancel("nobody waits for it any more")
      pcall(core.shield, pcall, flight.task.await, flight.task)
    end
  end,
}

--- Wraps a layer.
---@param config opero.CacheConfig completed
---@param next_layer opero.Layer
---@param told opero.Events? default: the logger "opero" is told
---@return opero.Layer
function cache.layer(config, next_layer, told)
  told = told or events.default
  local key_of = config.key or key_of_arguments
  local self = {
    next_layer = next_layer, ttl = config.ttl, max_entries = config.max_entries,
    negative_ttl = config.negative_ttl, stale = config.stale_while_error, store = nil,
  }

  local function note(name, key)
    if told:note(name) then
      told:tell(name, { key = key })
    end
  end

  -- In the place of a failure: the old result, if there is one and it still serves.
  local function instead(entry, key, err)
    if entry and entry.results and not outcome.is_final(err)
      and now() <= entry.expires + self.stale then
      local results = entry.results
      if told:note("cache_stale") then
        told:tell("cache_stale", { key = key, error = err, age = now() - entry.expires + self.ttl })
      end
      return outcome.of(results)
    end
    return false, err
  end

  -- Boards the flight before anything is told: a listener may suspend.
  local function share(store, fn, key, ...)
    local flight, event = find(store.flights, fn, key), "cache_shared"
    if not flight then
      flight, event = { passengers = 0, landed = core.event() }, "cache_miss"
      flight.task = core.detach(fly, self, store, flight, fn, key, ...)
      put(store.flights, fn, key, flight)
    end
    local passenger = setmetatable(
      { flight = flight, store = store, fn = fn, key = key }, passenger_mt)
    flight.passengers = flight.passengers + 1
    local _ <close> = passenger
    note(event, key)
    flight.landed:wait()
    return flight
  end

  local told_hit = outcome.protected(function(results, key)
    told:tell("cache_hit", { key = key })
    return outcome.of(results)
  end)

  local missed = outcome.protected(function(entry, key, fn, ...)
    local store = store_of(self)
    if entry and now() < entry.failure_expires then
      local err = entry.failure[1]
      note("cache_hit", key)
      return instead(entry, key, err)
    end
    local flight = share(store, fn, key, ...)
    if flight.results then
      return outcome.of(flight.results)
    end
    return instead(entry, key, flight.failure[1])
  end)

  return function(fn, ...)
    local ok, key = pcall(key_of, ...)
    if not ok then
      return false, key
    elseif key == nil or key ~= key then
      return next_layer(fn, ...)
    end
    local entry = look_up(store_of(self), fn, key)
    if not entry or now() >= entry.expires then
      return missed(entry, key, fn, ...)
    end
    local results = entry.results
    if told:note("cache_hit") then
      return told_hit(results, key)
    elseif results.n == 1 then
      return true, results[1]
    end
    return outcome.of(results)
  end
end

return cache
