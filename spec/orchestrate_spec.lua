local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local refused, simulated = support.refused, support.simulated

describe("orchestrate", function()
  it("makes a function that goes through the policies", simulated(function()
    local attempts = 0
    local f = opero.orchestrate { config = { retry_config = { max_attempts = 3 } } }(function(...)
      attempts = attempts + 1
      if attempts < 3 then
        return nil, "not yet"
      end
      return ...
    end)
    assert.same({ n = 3, 1, nil, nil }, table.pack(f(1, nil, nil)))
    assert.equal(3, attempts)
    assert.equal(3, opero.now())
  end))

  it("takes its options without `config` too, or none", simulated(function()
    local f = opero.orchestrate { fallbacks = function(x) return -x end }(function() error "x" end)
    assert.equal(-5, f(5))
    assert.equal(5, opero.orchestrate()(function(x) return x end)(5))
  end))

  it("gives f:process, f:map, f:imap and f:try", simulated(function()
    local f = opero.orchestrate { concurrency_config = { limit = 2 } }(function(x)
      opero.sleep(1)
      if x == "bad" then
        return nil, "no"
      end
      return x
    end)
    assert.same({ n = 4, 1, 2, 3, 4 }, f:process(1, 2, 3, 4))
    assert.equal(2, opero.now())
    assert.same({ n = 2, 1, 2 }, f:map { 1, 2 })
    local results, failures = f:map({ 1, "bad" }, { on_error = "collect" })
    assert.same({ n = 2, 1, nil }, results)
    assert.same({ n = 2, nil, "no" }, failures)
    local list = {}
    for result, err in f:imap({ 1, "bad", 3 }, { on_error = "collect" }) do
      list[#list + 1] = err or result
    end
    assert.same({ 1, "no", 3 }, list)
    assert.same({ n = 2, nil, "no" }, table.pack(f:try("bad")))
    assert.same({ n = 1, 7 }, table.pack(f:try(7)))
  end))

  it("shows the orchestrator, which all functions of one decorator share", simulated(function()
    local decorate = opero.orchestrate { concurrency_config = { limit = 1 } }
    local f, g = decorate(opero.sleep), decorate(opero.sleep)
    assert.equal(f.orchestrator, g.orchestrator)
    assert.equal(1, f.orchestrator.config.concurrency_config.limit)
    opero.all { function() f(1) end, function() g(1) end }
    assert.equal(2, opero.now())
    assert.equal(opero.sleep, f.fn)
  end))

  it("is itself something that can be called: a fallback, or decorated again", simulated(function()
    local double = opero.orchestrate {}(function(x) return 2 * x end)
    assert.equal(6, opero.FallbackChain(function() error "x" end, double)(3))
    assert.equal(6, opero.orchestrate { retry_config = {} }(double)(3))
  end))

  it("works in the main chunk", function()
    local f = opero.orchestrate {}(function(x)
      opero.sleep(0)
      return x
    end)
    assert.equal(1, f(1))
    assert.same({ n = 2, 1, 2 }, f:process(1, 2))
  end)

  it("refuses what it cannot use", function()
    assert.equal("config.retry_config.max_attempts",
      refused(opero.orchestrate, { config = { retry_config = { max_attempts = 0 } } }).path)
    assert.equal("orchestrate.fn: expected a function, got nil",
      refused(opero.orchestrate {}).message)
    assert.equal("orchestrate.fn", refused(opero.orchestrate {}, {}).path)
  end)
end)

describe("opero", function()
  local public = {
    "run", "simulate", "spawn", "current", "scope", "all", "any", "race", "sleep", "yield", "now",
    "timeout", "tasks", "shield", "wait", "await", "semaphore", "channel", "event", "step",
    "pollfd", "deadline", "traceback", "wrap", "Orchestrator", "OrchestratorConfig", "RetryConfig",
    "RateLimitConfig", "ConcurrencyConfig", "MultiprocessConfig", "FallbackChain", "orchestrate",
    "Pool", "get_logger", "ContextAdapter", "log_context", "configure_logging", "correlation_id",
    "reopen_logs", "TimeoutConfig", "CircuitBreaker", "CircuitBreakerConfig", "HedgeConfig",
    "CacheConfig", "RateLimiter", "Bulkhead", "RetryBudget", "Chaos", "pipeline", "value",
  }

  it("has what it promises, and nothing else", function()
    local left = {}
    for name in pairs(opero) do
      left[name] = true
    end
    for _, name in ipairs(public) do
      assert.is_function(opero[name], name)
      left[name] = nil
    end
    assert.equal(errors, opero.errors)
    assert.is_string(opero._VERSION)
    assert.same({ "function", "function", "function", "function" }, {
      type(opero.backoff.constant), type(opero.backoff.linear), type(opero.backoff.exponential),
      type(opero.backoff.decorrelated),
    })
    assert.is_function(opero.metrics.prometheus)
    left.errors, left._VERSION, left.backoff, left.metrics = nil, nil, nil, nil
    assert.same({}, left)
  end)

  it("is known to editors, methods included", function()
    local function read(module)
      local file <close> = assert(io.open(assert(package.searchpath(module, package.path))))
      return file:read("a")
    end
    local text, in_lua = read "opero.meta", read "opero.pool"
    for name in pairs(opero) do
      assert.is_truthy(text:find("function opero." .. name .. "(", 1, true)
        or text:find("---@field " .. name .. " ", 1, true), name)
    end
    local objects = {
      Task = opero.spawn(function() end), Semaphore = opero.semaphore(1),
      Channel = opero.channel(1), Event = opero.event(), Pool = opero.Pool(),
      Logger = opero.get_logger(),
    }
    objects.Task:await()
    opero.scope(function(scope) objects.Scope = scope end)
    for class, object in pairs(objects) do
      local methods = debug.getmetatable(object).__index
      for name in pairs(methods) do
        assert.is_truthy(name:find("^_") -- of its own
          or text:find(("function %s:%s("):format(class, name), 1, true)
          or class == "Pool" and in_lua:find(("function methods:%s("):format(name), 1, true),
          class .. ":" .. name)
      end
      for name in text:gmatch("function " .. class .. ":(%w+)%(") do
        assert.is_function(methods[name], class .. ":" .. name)
      end
    end
    for name in text:gmatch("function opero%.([%w_]+)%(") do
      assert.is_function(opero[name], name)
    end
  end)

  it("adds nothing to the globals", function()
    assert.equal("", require "spec.runtime.support".output_of [[
      local known = {}
      for name in pairs(_G) do
        known[name] = true
      end
      require "opero"
      for name in pairs(_G) do
        io.write(known[name] and "" or name .. "\n")
      end
    ]])
  end)
end)
