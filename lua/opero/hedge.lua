--- Hedge: when an attempt is slow another one starts; the first success counts, and the rest is
--- cancelled. After Jeffrey Dean and Luiz André Barroso, "The Tail at Scale" (CACM 56:2, 2013).

local check = require "opero.check"
local core = require "opero.core"
local events = require "opero.events"
local outcome = require "opero.outcome"

---@class opero.HedgeConfig
---@field delay number|{ percentile: number }|nil seconds after which another attempt starts; or as
---  long as the given part (0 to 1) of the attempts before took at most; default
---  { percentile = 0.95 }
---@field max integer? how many further attempts at most; default 1

local hedge = {}

-- The clock's resolution: no difference below it means anything.
local NANOSECOND <const> = 1e-9

-- Before so many attempts were measured their percentiles say nothing.
local ENOUGH <const> = 20

-- Percentiles are of the last so many, at least: they have to follow when all gets slower, or every
-- call would be made twice from then on.
local RECENT <const> = 1000

-- Meters are off by less than a hundredth: so much later an attempt is slow for sure, also where
-- all of them take about the same time.
local EXACTNESS <const> = 1.01

---@type opero.check.Spec
local delay_options = {
  fields = {
    percentile = { type = "number", min = 0, max = 1, required = true },
  },
}

---@type opero.check.Spec
hedge.options = {
  fields = {
    delay = {
      check = function(value, path)
        if type(value) == "table" then
          return check.options(delay_options, value, path)
        elseif type(value) ~= "number" or value ~= value or value < 0 or value == math.huge then
          check.fail(path, value, "a finite number >= 0, or { percentile = 0 to 1 }")
        end
        return value
      end,
      default = { percentile = 0.95 },
    },
    max = { type = "integer", min = 1, default = 1 },
  },
}

--- The option `hedge_config`.
---@type opero.check.Field
hedge.field = { type = "options", options = hedge.options }

--- Checks and completes a table of options. Raises ConfigError.
---@type fun(given: opero.HedgeConfig?): opero.HedgeConfig
hedge.config = check.constructor("HedgeConfig", hedge.options)

-- ---- how long attempts take ---------------------------------------------------------------------

-- Durations, in two meters: the older one is full, the newer one takes its place when it is.
local function stopwatch()
  local newer, older, of_epoch
  local self = {}

  local function refresh()
    if of_epoch ~= core.epoch() then
      of_epoch, newer, older = core.epoch(), core.meter(), nil
    end
  end

  function self.add(seconds)
    refresh()
    newer:add(seconds)
    if newer:count() >= RECENT then
      newer, older = core.meter(), newer
    end
  end

  -- Nil as long as too little was measured.
  function self.percentile(fraction)
    refresh()
    local meter = older or newer
    if meter:count() >= ENOUGH then
      return meter:percentile(fraction) * EXACTNESS
    end
    return nil
  end

  return self
end

-- ---- the race -----------------------------------------------------------------------------------

-- What one call has come to.
---@class opero.hedge.Race
---@field results table? the first success, with n
---@field final table? { err }: a cancellation that ends all
---@field failure table? { err }: the first failure
---@field running integer attempts that have no outcome yet
---@field started integer
---@field change opero.Event? set when one has failed

--- Wraps a layer.
---@param config opero.HedgeConfig completed
---@param next_layer opero.Layer
---@param told opero.Events? default: the logger "opero" is told
---@return opero.Layer
function hedge.layer(config, next_layer, told)
  told = told or events.default
  local max, percentile, fixed = config.max, nil, config.delay
  local durations = stopwatch()
  if type(fixed) == "table" then
    percentile, fixed = fixed.percentile, nil
  end

  -- Only first attempts are measured. One that lost counts with the time until then: it would have
  -- taken longer still, and if those that are slow were left out, percentiles would go down and
  -- down. A further attempt that lost has shown nothing.
  local function attempt(race, scope, is_first, fn, ...)
    local began = core.now()
    local results, err = outcome.keep(next_layer(fn, ...))
    race.running = race.running - 1
    if percentile and is_first and (results or race.results) then
      durations.add(core.now() - began)
    end
    if results then
      race.results = race.results or results
      if race.started > 1 then -- to cancel costs more than all the rest
        scope:cancel()
      end
    elseif outcome.is_final(err) then
      race.final = race.final or { err }
      scope:cancel()
    else
      race.failure = race.failure or { err }
      if race.change then
        race.change:set()
      end
    end
  end

  -- Starts the further attempts, one after each delay; when it is called the first of them is due.
  local function watch(race, scope, delay, fn, ...)
    local due = core.now()
    race.change = core.event()
    while race.started <= max do
      while due - core.now() >= NANOSECOND and race.running > 0 do
        race.change:clear()
        local ok, err = pcall(race.change.wait, race.change, due - core.now())
        if not ok and core.is_cancelled(err) then
          return -- it is won
        end
      end
      if race.running == 0 then
        return -- all have failed before they were slow, which is for the retries
      end
      due = due + delay
      race.started, race.running = race.started + 1, race.running + 1
      scope:spawn(attempt, race, scope, false, fn, ...)
      if told:note("hedge") then
        told:tell("hedge", { attempt = race.started, delay = delay })
      end
    end
  end

  local function measured(began, ok, ...)
    if ok then
      durations.add(core.now() - began)
    end
    return ok, ...
  end

  return outcome.protected(function(fn, ...)
    local delay = fixed or durations.percentile(percentile)
    if not delay then
      return measured(core.now(), next_layer(fn, ...))
    end
    local race = { running = 1, started = 1, change = nil }
    local arguments = table.pack(...)
    core.scope(function(scope)
      scope:_after(delay, function()
        watch(race, scope, delay, fn, table.unpack(arguments, 1, arguments.n))
      end)
      attempt(race, scope, true, fn, table.unpack(arguments, 1, arguments.n))
    end)
    if race.results then
      return outcome.of(race.results)
    end
    return false, (race.final or race.failure)[1]
  end)
end

return hedge
