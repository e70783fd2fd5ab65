-- The annotations that editors read (LuaCATS) say what is true: every public function has them,
-- with its parameters by name and in order, every option has a field, and neither has one too many.

local core = require "opero.core"
local opero = require "opero"

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  local lines = {}
  for line in file:lines() do
    lines[#lines + 1] = line
  end
  return lines
end

local files = {}

local function lines_of(path)
  files[path] = files[path] or read(path)
  return files[path]
end

-- The names of the parameters of a Lua function.
local function parameters_of(fn)
  local info, names = debug.getinfo(fn, "u"), {}
  for i = 1, info.nparams do
    names[i] = debug.getlocal(fn, i)
  end
  if info.isvararg then
    names[#names + 1] = "..."
  end
  if names[1] == "self" or names[1] == "_" then
    table.remove(names, 1)
  end
  return names
end

-- The comment above the line at which a function begins: { description, params, returns }.
local function annotation_above(path, line)
  local lines, found = lines_of(path), { params = {}, returns = 0, words = 0 }
  line = line - 1
  local block = {}
  while lines[line] and lines[line]:find("^%s*%-%-%-") do
    table.insert(block, 1, lines[line])
    line = line - 1
  end
  for _, text in ipairs(block) do
    local name = text:match("^%s*%-%-%-@param ([%w_%.]+)")
    if name then
      found.params[#found.params + 1] = name
    elseif text:find("^%s*%-%-%-@return") then
      found.returns = found.returns + 1
    elseif text:find("^%s*%-%-%- %w") or text:find("^%s*%-%-%-@type") then
      found.words = found.words + 1
    end
  end
  return found
end

local function is_ours(fn)
  local info = debug.getinfo(fn, "S")
  return info.what == "Lua" and info.source:match("^@(.*lua/opero/[%w_]+%.lua)$"), info.linedefined
end

-- Checks a function of a name; one of C is looked for in meta.lua by others.
local function check(name, fn)
  local path, line = is_ours(fn)
  if not path then
    return
  end
  local begins = lines_of(path)[line]
  if not begins:find("^%s*function") and not begins:find("^return") then
    return -- made by another function: its type stands where it is kept
  end
  local found = annotation_above(path, line)
  assert.same(parameters_of(fn), found.params, ("%s at %s:%d"):format(name, path, line))
  assert.is_true(found.words > 0 or found.returns > 0,
    ("%s at %s:%d has no description"):format(name, path, line))
end

describe("the annotations", function()
  it("of public functions have their parameters, in order", function()
    for name, value in pairs(opero) do
      if type(value) == "function" then
        check("opero." .. name, value)
      elseif type(value) == "table" and name ~= "errors" then
        for inner, fn in pairs(value) do
          check(("opero.%s.%s"):format(name, inner), fn)
        end
      end
    end
    for _, name in ipairs { "class", "is", "is_class", "summary", "make" } do
      check("opero.errors." .. name, opero.errors[name])
    end
  end)

  it("of methods have their parameters, in order", function()
    local objects = {
      Orchestrator = opero.Orchestrator(), FallbackChain = opero.FallbackChain(print),
      Orchestrated = opero.orchestrate()(print), CircuitBreaker = opero.CircuitBreaker(),
      RateLimiter = opero.RateLimiter { rate = 1 }, Bulkhead = opero.Bulkhead { limit = 1 },
      RetryBudget = opero.RetryBudget(), Pipeline = opero.pipeline {}, Pool = opero.Pool(),
      Logger = opero.get_logger(),
    }
    local checked = 0
    for class, object in pairs(objects) do
      for name, method in pairs(debug.getmetatable(object).__index) do
        if type(method) == "function" and not name:find("^_") and class ~= "Logger" then
          check(class .. ":" .. name, method)
          checked = checked + 1
        end
      end
    end
    assert.is_true(checked > 30)
  end)

  it("of options agree with what is checked", function()
    local specs = {
      retry = { "opero.RetryConfig", "options" }, timeout = { "opero.TimeoutConfig", "options" },
      rate_limit = { "opero.RateLimitConfig", "options" },
      concurrency = { "opero.ConcurrencyConfig", "options" },
      circuit_breaker = { "opero.CircuitBreakerConfig", "options" },
      hedge = { "opero.HedgeConfig", "options" }, cache = { "opero.CacheConfig", "options" },
      chaos = { "opero.ChaosConfig", "options" },
      retry_budget = { "opero.RetryBudgetConfig", "options" },
      pool = { "opero.PoolConfig", "options" },
      orchestrator = { "opero.OrchestratorConfig", "options" },
      logging = { "opero.LoggingConfig", "options" },
    }
    for module, spec in pairs(specs) do
      local class, options = spec[1], require("opero." .. module)[spec[2]]
      local annotated, here = {}, false
      local path = assert(package.searchpath("opero." .. module, package.path))
      for _, line in ipairs(lines_of(path)) do
        if line:find("^%-%-%-@class") then
          here = line:match("^%-%-%-@class ([%w_%.]+)") == class
        elseif not line:find("^%-%-%-") then
          here = false
        end
        local name = here and line:match("^%-%-%-@field ([%w_]+)")
        if name then
          assert.is_nil(annotated[name], class .. "." .. name .. " stands there twice")
          annotated[name] = true
        end
      end
      for name in pairs(options.fields) do
        assert.is_true(annotated[name], ("%s.%s has no annotation"):format(class, name))
        annotated[name] = nil
      end
      assert.is_nil(next(annotated), ("%s.%s is no option"):format(class, next(annotated) or ""))
    end
  end)

  it("in meta.lua name the parameters of what is written in Lua", function()
    local path = assert(package.searchpath("opero.meta", package.path))
    for _, line in ipairs(lines_of(path)) do
      local name, parameters = line:match("^%-%-%-@field (%w[%w_]*) fun%((.-)%)")
      local fn = name and opero[name]
      if fn and is_ours(fn) then
        local source, at = is_ours(fn)
        if lines_of(source)[at]:find("^%s*function") then
          local names = {}
          for parameter in parameters:gmatch("([%w_%.]+)%??:") do
            names[#names + 1] = parameter
          end
          assert.same(parameters_of(fn), names, name)
        end
      end
    end
    assert.is_function(core.invoke)
  end)
end)
