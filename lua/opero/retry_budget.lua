--- A budget of retries: at most a part of all calls may be retries, so that retries do not make an
-- overload worse. As Finagle and gRPC have it: each call pays in, each retry takes out.

local check = require "opero.check"
local core = require "opero.core"

---@class opero.RetryBudgetConfig
---@field ratio number? so great a part of the calls in the window may be retries; default 0.2
---@field min_per_second number? so many retries a second are free; default 10
---@field window number? seconds; default 10

local retry_budget = {}

local STEPS <const> = 10 -- of the window
local LEAST_STEP <const> = 1e-6 -- seconds; so the number of steps is an exact one at any time

---@type opero.check.Spec
retry_budget.options = {
  fields = {
    ratio = { type = "number", min = 0, max = 1000, default = 0.2 },
    min_per_second = { type = "number", min = 0, default = 10 },
    window = { type = "number", above = 0, default = 10 },
  },
}

---@class opero.RetryBudget
---@field config opero.RetryBudgetConfig completed
local methods = {}
local mt = { __name = "opero.RetryBudget", __index = methods }

-- Forgets what is no longer in the window.
local function advance(self)
  if self.epoch ~= core.epoch() then
    self.epoch, self.calls, self.retries, self.steps, self.last = core.epoch(), 0, 0, {}, nil
  end
  local current = core.now() // math.max(self.config.window / STEPS, LEAST_STEP)
  if current ~= self.last then
    for back = 0, math.min(self.last and current - self.last or STEPS, STEPS) - 1 do
      local slot = (current - back) % STEPS
      local old = self.steps[slot]
      if old then
        self.calls, self.retries = self.calls - old.calls, self.retries - old.retries
      end
      self.steps[slot] = { calls = 0, retries = 0 }
    end
    self.last = current
  end
  return self.steps[current % STEPS]
end

-- So many retries may be in the window. What rounding takes away is given back: 0.29 * 100 is 29.
local function allowed(self)
  local config = self.config
  return config.ratio * self.calls + config.min_per_second * config.window + 1e-9
end

--- A call was made that is no retry.
function methods:note_call()
  local step = advance(self)
  step.calls, self.calls = step.calls + 1, self.calls + 1
end

--- Takes a retry out of the budget, if there is one left.
---@return boolean taken
function methods:try_retry()
  local step = advance(self)
  if self.retries + 1 > allowed(self) then
    return false
  end
  step.retries, self.retries = step.retries + 1, self.retries + 1
  return true
end

---@class opero.RetryBudgetStats
---@field calls integer in the window, retries not counted
---@field retries integer in the window
---@field left integer retries that may be made now

---@return opero.RetryBudgetStats
function methods:stats()
  advance(self)
  return {
    calls = self.calls, retries = self.retries,
    left = math.max(0, math.floor(allowed(self) - self.retries)),
  }
end

--- Makes a budget; it may be given to several orchestrators. Raises ConfigError.
---@param given opero.RetryBudgetConfig?
---@return opero.RetryBudget
function retry_budget.new(given)
  return retry_budget.of(
    check.options(retry_budget.options, given == nil and {} or given, "RetryBudget"))
end

--- Makes a budget of completed options; a budget is returned as it is.
---@param config opero.RetryBudgetConfig|opero.RetryBudget
---@return opero.RetryBudget
function retry_budget.of(config)
  return getmetatable(config) == mt and config or setmetatable({ config = config }, mt)
end

--- The option `budget`: options, or a budget.
---@type opero.check.Field
retry_budget.field = {
  check = function(value, path)
    return getmetatable(value) == mt and value
      or check.options(retry_budget.options, value, path)
  end,
}

return retry_budget
