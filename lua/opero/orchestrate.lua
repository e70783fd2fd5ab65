--- The decorator: a function that always goes through an orchestrator.

local check = require "opero.check"
local orchestrator = require "opero.orchestrator"

---@class opero.Orchestrated
---@field orchestrator opero.Orchestrator
---@field fn function the function as it was given
---@overload fun(...: any): any ...
local methods = {}

--- As Orchestrator:try.
---@param ... any
---@return any ...
function methods:try(...)
  return self.orchestrator:try(self.fn, ...)
end

--- As Orchestrator:process with this function alone: its results for all items, in order.
---@param ... any the items
---@return table results with n
function methods:process(...)
  return self.orchestrator:process(self.fn, ...)
end

--- As Orchestrator:map.
---@param items table|function
---@param options opero.MapOptions?
---@return table results with n
---@return table? errors
function methods:map(items, options)
  return self.orchestrator:map(self.fn, items, options)
end

--- As Orchestrator:imap.
---@param items table|function
---@param options opero.MapOptions?
---@return fun(): any, any, integer? next_result
---@return nil
---@return nil
---@return table
function methods:imap(items, options)
  return self.orchestrator:imap(self.fn, items, options)
end

local mt = {
  __name = "opero.Orchestrated",
  __index = methods,
  __call = function(self, ...)
    return self.orchestrator:execute(self.fn, ...)
  end,
}

--- Returns a decorator: `local f = orchestrate{ config = ... }(function(x) ... end)`. What it
--- decorates shares its limits. Calling f is Orchestrator:execute. Raises ConfigError.
---@param given opero.OrchestratorConfig|{ config: opero.OrchestratorConfig }|nil
---@return fun(fn: function): opero.Orchestrated
return function(given)
  local shared = orchestrator.new(given)
  return function(fn)
    check.callable(fn, "orchestrate.fn")
    return setmetatable({ orchestrator = shared, fn = fn }, mt)
  end
end
