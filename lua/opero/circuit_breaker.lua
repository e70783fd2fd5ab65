--- Circuit breaker: stops calling what keeps failing, and tries it again after a while.
--
-- Closed, it lets all through and looks at what comes of it. Open, it lets nothing through, for
-- `open_for` seconds. Then it is half-open: a few trial calls go through; when all of them succeed
-- it closes, with the first that fails it opens again. The pattern is Michael Nygard's ("Release
-- It!", 2007).
--
-- What is kept is kept for each key, with the epoch of the clock: under another clock, a
-- simulation's, it starts afresh.

local check = require "opero.check"
local core = require "opero.core"
local errors = require "opero.errors"
local events = require "opero.events"
local matcher = require "opero.matcher"
local outcome = require "opero.outcome"

---@class opero.CircuitBreakerConfig
---@field failures integer? it opens after so many failures in a row; default 5, unless there is a
---  failure_rate
---@field failure_rate number? it opens when so great a part of the calls in the window fails;
---  > 0, <= 1
---@field window { calls: integer?, seconds: number? }? of the last calls, or of the last seconds,
---  in ten steps; default { calls = 100 }
---@field min_calls integer? so many calls have to be in the window before the rate counts; default
---  10, or window.calls if that is less
---@field open_for (number|fun(times: integer): number)? seconds, or a function of how often in a
---  row it has opened; default 60
---@field half_open_calls integer? trial calls; default 1
---@field slow_call number? seconds; a success that takes longer counts as a failure; default: none
---  is too slow
---@field failure_on opero.Matcher? which errors count; default: all. Cancellation never does
---@field key (fun(...): any)? of the arguments of a call: one breaker for each key; default: one
---  for all
---@field max_keys integer? of so many keys at most the state is kept; default 10000

local circuit_breaker = {}

local now, epoch = core.now, core.epoch

local STEPS <const> = 10 -- of a window of seconds
local LEAST_STEP <const> = 1e-9 -- no clock tells shorter ones apart

local DEFAULT_OPEN_FOR <const> = 60

---@type opero.check.Spec
local window_options = {
  fields = {
    calls = { type = "integer", min = 1 },
    seconds = { type = "number", above = 0 },
  },
  verify = function(options, path)
    if (options.calls == nil) == (options.seconds == nil) then
      check.fail(path, options, "either calls or seconds")
    end
  end,
}

---@type opero.check.Spec
circuit_breaker.options = {
  fields = {
    failures = { type = "integer", min = 1 },
    failure_rate = { type = "number", above = 0 },
    window = { type = "options", options = window_options },
    min_calls = { type = "integer", min = 1 },
    open_for = {
      check = function(value, path)
        if check.is_callable(value) then
          return value
        elseif type(value) ~= "number" or value ~= value or value <= 0 or value == math.huge then
          check.fail(path, value, "a finite number > 0, or a function")
        end
        return value
      end,
      default = DEFAULT_OPEN_FOR,
    },
    half_open_calls = { type = "integer", min = 1, default = 1 },
    slow_call = { type = "number", above = 0 },
    failure_on = { check = matcher.compile, default = matcher.any },
    key = { check = check.callable },
    max_keys = { type = "integer", min = 1, default = 10000 },
  },
  verify = function(options, path)
    local function refuse(name, why)
      check.fail(check.join(path, name), options[name], why)
    end
    if options.failures and options.failure_rate then
      refuse("failures", "nothing beside failure_rate: it counts failures in a row, or a rate")
    elseif options.failure_rate and options.failure_rate > 1 then
      refuse("failure_rate", "a number > 0 and <= 1")
    elseif not options.failure_rate and options.window then
      refuse("window", "nothing without failure_rate")
    elseif not options.failure_rate and options.min_calls then
      refuse("min_calls", "nothing without failure_rate")
    end
    if options.failure_rate then
      options.window = options.window or { calls = 100 }
      options.min_calls = options.min_calls or math.min(10, options.window.calls or 10)
      if options.window.calls and options.min_calls > options.window.calls then
        refuse("min_calls",
          ("an integer <= window.calls, which is %d"):format(options.window.calls))
      end
    else
      options.failures = options.failures or 5
    end
  end,
}

-- ---- windows ------------------------------------------------------------------------------------

-- Of the last calls: a ring of outcomes.
local function window_of_calls(size)
  local ring, at, window = {}, 0, { calls = 0, failures = 0, size = size }
  function window:add(failed)
    at = at < size and at + 1 or 1
    local before = ring[at]
    if before then
      self.failures = self.failures - 1
    elseif before == nil then
      self.calls = self.calls + 1
    end
    ring[at] = failed
    if failed then
      self.failures = self.failures + 1
    end
  end
  return window
end

-- Of the last seconds: counts for each tenth of them.
local function window_of_seconds(seconds)
  local step, steps = math.max(seconds / STEPS, LEAST_STEP), {}
  local window = { calls = 0, failures = 0 }
  local last
  function window:advance()
    local current = now() // step
    if current == last then
      return
    end
    for back = 0, math.min(last and current - last or 1, STEPS) - 1 do
      local slot = (current - back) % STEPS
      local old = steps[slot]
      if old then
        self.calls, self.failures = self.calls - old.calls, self.failures - old.failures
      end
      steps[slot] = { calls = 0, failures = 0 }
    end
    last = current
  end
  function window:add(failed)
    self:advance()
    local slot = steps[last % STEPS]
    slot.calls, self.calls = slot.calls + 1, self.calls + 1
    if failed then
      slot.failures, self.failures = slot.failures + 1, self.failures + 1
    end
  end
  return window
end

-- ---- one circuit --------------------------------------------------------------------------------

---@class opero.circuit_breaker.Circuit what is kept for a key
---@field state "closed"|"open"|"half_open"
---@field failures integer in a row
---@field window table? of a rate
---@field opened integer how often it has opened since it was last closed by success
---@field until_time number when it stops to be open
---@field trials integer half-open: how many may still begin
---@field succeeded integer half-open: trials that have
---@field round integer grows with every change of state: what began before it does not count
---@field is_forced boolean it was opened by hand, and stays so

---@class opero.CircuitBreaker
---@field config opero.CircuitBreakerConfig completed
local methods = {}
local mt = { __name = "opero.CircuitBreaker", __index = methods }

local function new_circuit(config)
  local window = config.window
  return {
    state = "closed", failures = 0, opened = 0, round = 0, trials = 0, succeeded = 0,
    until_time = 0, is_forced = false, last_used = 0, rejected = 0,
    window = window and (window.calls and window_of_calls(window.calls)
      or window_of_seconds(window.seconds)),
  }
end

-- All there is under this clock.
local function circuits_of(breaker)
  if breaker.epoch ~= epoch() then
    breaker.epoch, breaker.circuits, breaker.count = epoch(), {}, 0
    breaker.single = new_circuit(breaker.config)
  end
  return breaker.circuits
end

-- Makes room for another key: those go that were not used for longest, closed ones first.
local function make_room(breaker)
  local list = {}
  for key, circuit in pairs(breaker.circuits) do
    local rank = circuit.is_forced and 2 or circuit.state ~= "closed" and 1 or 0
    list[#list + 1] = { key, circuit.last_used, rank }
  end
  table.sort(list, function(a, b)
    if a[3] ~= b[3] then
      return a[3] < b[3]
    end
    return a[2] < b[2]
  end)
  for i = 1, #list // 4 + 1 do
    breaker.circuits[list[i][1]] = nil
    breaker.count = breaker.count - 1
  end
end

-- To be looked at, or changed by hand: of a key that was not used yet nothing is kept by looking.
local function peek(breaker, key)
  local circuits = circuits_of(breaker)
  if key == nil or key ~= key then -- NaN is no key
    return breaker.single
  end
  return circuits[key] or new_circuit(breaker.config)
end

local function circuit_for(breaker, key)
  local circuits = circuits_of(breaker)
  if key == nil or key ~= key then
    return breaker.single
  end
  local circuit = circuits[key]
  if not circuit then
    if breaker.count >= breaker.config.max_keys then
      make_room(breaker)
    end
    circuit = new_circuit(breaker.config)
    circuits[key] = circuit
    breaker.count = breaker.count + 1
  end
  breaker.uses = breaker.uses + 1
  circuit.last_used = breaker.uses
  return circuit
end

local function change(circuit, state)
  circuit.state = state
  circuit.round = circuit.round + 1
end

local function tell(told, name, key, fields)
  if told:note(name) then
    fields.key = key
    told:tell(name, fields)
  end
end

-- The seconds that the user's function says.
local function check_open_for(seconds)
  if type(seconds) ~= "number" or not (seconds >= 0 and seconds < math.huge) then
    check.fail("circuit_breaker_config.open_for", seconds,
      "a function that returns a finite number >= 0")
  end
  return seconds
end

local function open(breaker, circuit, key, told, err)
  local open_for, time = breaker.config.open_for, now()
  circuit.opened = circuit.opened + 1
  change(circuit, "open")
  if type(open_for) ~= "number" then
    -- It is open already: the function may raise, or suspend and let others come here.
    circuit.until_time = time + DEFAULT_OPEN_FOR
    local round = circuit.round
    open_for = check_open_for(open_for(circuit.opened))
    if circuit.round ~= round then
      return
    end
  end
  circuit.until_time = time + open_for
  tell(told, "breaker_open", key, { open_for = open_for, error = err })
end

local function close(breaker, circuit)
  local fresh = new_circuit(breaker.config)
  circuit.failures, circuit.window, circuit.opened = 0, fresh.window, 0
  circuit.is_forced = false
  change(circuit, "closed")
end

-- Whether a circuit that is closed has now failed too often.
local function has_tripped(config, circuit)
  if config.failures then
    return circuit.failures >= config.failures
  end
  local window = circuit.window
  return window.calls >= config.min_calls
    and window.failures / window.calls >= config.failure_rate
end

-- A call that began in this round has come to an end.
local function record(breaker, circuit, key, round, failed, err, told)
  local config = breaker.config
  if circuit.round ~= round then
    return -- the state has changed since
  elseif circuit.state == "half_open" then
    if failed then
      open(breaker, circuit, key, told, err)
    else
      circuit.succeeded = circuit.succeeded + 1
      if circuit.succeeded >= config.half_open_calls then
        close(breaker, circuit)
        tell(told, "breaker_close", key, {})
      end
    end
    return
  elseif circuit.state ~= "closed" then
    return
  end
  if circuit.window then
    circuit.window:add(failed)
  else
    circuit.failures = failed and circuit.failures + 1 or 0
  end
  if has_tripped(config, circuit) then -- a success may be the last of min_calls
    open(breaker, circuit, key, told, err)
  end
end

local function is_due(circuit)
  return circuit.state == "open" and not circuit.is_forced and now() >= circuit.until_time
end

-- Seconds until it is half-open, where that is known.
local function wait_of(circuit)
  return circuit.state == "open" and not circuit.is_forced
    and math.max(0, circuit.until_time - now()) or nil
end

local function rejection(circuit, key, told)
  circuit.rejected = circuit.rejected + 1
  local wait, is_open = wait_of(circuit), circuit.state == "open"
  tell(told, "breaker_rejected", key, { retry_after = wait })
  return errors.CircuitOpenError(
    ("the circuit breaker%s is %s"):format(
      key == nil and "" or (" of %s"):format(errors.summary(key)),
      is_open and "open" or "half-open, and its trial calls are under way"),
    { retry_after = wait, key = key })
end

-- A trial that came to no outcome (it was cancelled) may be made by somebody else.
local trial_mt = {
  __close = function(trial)
    local circuit = trial.circuit
    if not trial.is_done and circuit.round == trial.round then
      circuit.trials = circuit.trials + 1
    end
  end,
}

--- Wraps a layer.
---@param config opero.CircuitBreakerConfig|opero.CircuitBreaker completed, or a breaker
---@param next_layer opero.Layer
---@param told opero.Events? default: the logger "opero" is told
---@return opero.Layer
function circuit_breaker.layer(config, next_layer, told)
  local breaker = getmetatable(config) == mt and config or circuit_breaker.from(config)
  told = told or events.default
  config = breaker.config
  local key_of, slow_call, matches = config.key, config.slow_call, config.failure_on

  -- These two run users' functions, and listeners.
  local recorded = outcome.protected(function(trial, circuit, key, round, failed, ok, ...)
    if failed == nil then
      failed = matches((...)) and true or false
    end
    if trial then
      trial.is_done = true -- after what may have raised
    end
    local err
    if not ok then
      err = ...
    end
    record(breaker, circuit, key, round, failed, err, told)
    return ok, ...
  end)

  local function finish(trial, circuit, key, round, began, ok, ...)
    if ok then
      local is_slow, window = slow_call and now() - began > slow_call or false, circuit.window
      if window and window.calls == window.size and not trial and not is_slow then
        if circuit.round == round then
          window:add(false) -- where it is full of calls, a success makes no rate greater
        end
      elseif trial or is_slow or circuit.window or circuit.failures > 0 then
        return recorded(trial, circuit, key, round, is_slow, true, ...)
      end
    elseif not outcome.is_final(...) then
      return recorded(trial, circuit, key, round, nil, false, ...)
    end
    return ok, ...
  end

  -- Past a circuit that is not closed.
  local through = outcome.protected(function(circuit, key, fn, ...)
    local is_half_open = is_due(circuit)
    if is_half_open then
      change(circuit, "half_open")
      circuit.trials, circuit.succeeded = config.half_open_calls, 0
    end
    if circuit.state ~= "half_open" or circuit.trials == 0 then
      return false, rejection(circuit, key, told)
    end
    circuit.trials = circuit.trials - 1
    local trial <close> = setmetatable({ circuit = circuit, round = circuit.round }, trial_mt)
    if is_half_open then
      tell(told, "breaker_half_open", key, {})
    end
    return finish(trial, circuit, key, trial.round, slow_call and now(), next_layer(fn, ...))
  end)

  local function guarded(circuit, key, fn, ...)
    if circuit.state ~= "closed" then
      return through(circuit, key, fn, ...)
    end
    return finish(nil, circuit, key, circuit.round, slow_call and now(), next_layer(fn, ...))
  end

  if not key_of then
    return function(fn, ...)
      return guarded(circuit_for(breaker, nil), nil, fn, ...)
    end
  end
  return outcome.protected(function(fn, ...)
    local key = key_of(...)
    if key ~= key then
      key = nil -- NaN is no key
    end
    return guarded(circuit_for(breaker, key), key, fn, ...)
  end)
end

-- ---- what users see of it -----------------------------------------------------------------------

--- The state now, of that key: "closed", "open" or "half_open".
---@param key any? where the breaker has keys
---@return "closed"|"open"|"half_open"
function methods:state(key)
  local circuit = peek(self, key)
  return is_due(circuit) and "half_open" or circuit.state -- it changes with the next call
end

---@class opero.CircuitBreakerMetrics
---@field state "closed"|"open"|"half_open"
---@field calls integer? in the window
---@field failures integer in the window, or in a row
---@field failure_rate number? of the window
---@field opened integer how often in a row it has opened
---@field rejected integer calls that were not let through
---@field retry_after number? seconds until it is half-open

---@param key any?
---@return opero.CircuitBreakerMetrics
function methods:metrics(key)
  local circuit = peek(self, key)
  local window = circuit.window
  if window and window.advance then
    window:advance()
  end
  return {
    state = is_due(circuit) and "half_open" or circuit.state,
    calls = window and window.calls,
    failures = window and window.failures or circuit.failures,
    failure_rate = window and (window.calls > 0 and window.failures / window.calls or 0) or nil,
    opened = circuit.opened,
    rejected = circuit.rejected,
    retry_after = wait_of(circuit),
  }
end

--- Opens it by hand, until it is closed or reset by hand.
---@param key any?
function methods:open(key)
  local circuit = circuit_for(self, key)
  circuit.is_forced = true
  change(circuit, "open")
end

--- Closes it by hand.
---@param key any?
function methods:close(key)
  close(self, peek(self, key))
end

--- Forgets all that was counted, of all keys: closed, as if new.
function methods:reset()
  self.epoch = nil
  circuits_of(self)
end

--- Makes a breaker of completed options.
---@param config opero.CircuitBreakerConfig
---@return opero.CircuitBreaker
function circuit_breaker.from(config)
  return setmetatable({ config = config, uses = 0 }, mt)
end

--- Makes a breaker; it may be given to several orchestrators in place of options. Raises
--- ConfigError.
---@param given opero.CircuitBreakerConfig?
---@return opero.CircuitBreaker
function circuit_breaker.new(given)
  return circuit_breaker.from(
    check.options(circuit_breaker.options, given == nil and {} or given, "CircuitBreaker"))
end

--- The option `circuit_breaker_config`: options, or a breaker.
---@type opero.check.Field
circuit_breaker.field = {
  check = function(value, path)
    return getmetatable(value) == mt and value
      or check.options(circuit_breaker.options, value, path)
  end,
}

--- Checks and completes a table of options. Raises ConfigError.
---@type fun(given: opero.CircuitBreakerConfig?): opero.CircuitBreakerConfig
circuit_breaker.config = check.constructor("CircuitBreakerConfig", circuit_breaker.options)

return circuit_breaker
