--- Concurrency: no more than so many executions at once. The others wait, first come first served.

local check = require "opero.check"
local core = require "opero.core"
local report = require "opero.report"

---@class opero.ConcurrencyConfig
---@field limit integer how many executions may run at once; required

local concurrency = {}

---@type opero.check.Spec
concurrency.options = {
  fields = {
    limit = { type = "integer", min = 1, required = true },
  },
}

--- The option `concurrency_config`.
---@type opero.check.Field
concurrency.field = { type = "options", options = concurrency.options }

--- Checks a table of options. Raises ConfigError.
---@type fun(given: opero.ConcurrencyConfig): opero.ConcurrencyConfig
concurrency.config = check.constructor("ConcurrencyConfig", concurrency.options)

--- Wraps a layer.
---@param config opero.ConcurrencyConfig completed
---@param next_layer opero.Layer
---@param told opero.Report? default: the logger "opero" is told
---@return opero.Layer
function concurrency.layer(config, next_layer, told)
  told = told or report.default
  local permits = core.semaphore(config.limit)
  -- Closing a variable gives the permit back however the execution ends, also when the coroutine it
  -- is suspended in is closed.
  local permit = setmetatable({}, {
    __close = function()
      permits:release()
    end,
  })
  return function(fn, ...)
    if not permits:try_acquire() then
      if told.enabled("debug") then
        told.tell("debug", "concurrency limit reached, will wait", { limit = config.limit })
      end
      local ok, err = pcall(permits.acquire, permits)
      if not ok then
        return false, err
      end
    end
    local _ <close> = permit
    return next_layer(fn, ...)
  end
end

return concurrency
