local errors = require "opero.errors"
local opero = require "opero"
local support = require "spec.support"

local raised, refused = support.raised, support.refused

local function noop() end

describe("RetryConfig", function()
  it("completes with the defaults", function()
    local config = opero.RetryConfig()
    assert.is_true(config.retry_on("any error"))
    config.retry_on = nil
    assert.same({
      max_attempts = 3, wait_min = 1, wait_max = 60, wait_multiplier = 1, jitter = "none",
      reraise = true,
    }, config)
  end)

  it("keeps what is given", function()
    local function matches() end
    local given = {
      max_attempts = 7, wait_min = 0, wait_max = 0.5, wait_multiplier = 0, jitter = "decorrelated",
      reraise = false, retry_on = matches,
    }
    assert.same(given, opero.RetryConfig(given))
  end)

  it("wants wait_max no less than wait_min, the default one included", function()
    assert.equal("RetryConfig.wait_max: expected a number >= wait_min, which is 5, got 4",
      refused(opero.RetryConfig, { wait_min = 5, wait_max = 4 }).message)
    assert.equal("RetryConfig.wait_max: expected a number >= wait_min, which is 61, got 60",
      refused(opero.RetryConfig, { wait_min = 61 }).message)
    assert.equal(5, opero.RetryConfig({ wait_min = 5, wait_max = 5 }).wait_max)
  end)
end)

describe("RateLimitConfig and ConcurrencyConfig", function()
  it("complete with the defaults", function()
    local more = { mode = "wait", max_keys = 10000 }
    for _, given in ipairs { { rate = 0.5, burst = 1 }, { rate = 2, burst = 9 } } do
      local config = opero.RateLimitConfig(given)
      more.rate, more.burst = given.rate, given.burst
      assert.same(more, config)
    end
    assert.equal(1, opero.RateLimitConfig({ rate = 0.5 }).burst)
    assert.same({ limit = 4 }, opero.ConcurrencyConfig { limit = 4 })
  end)

  it("cannot do without rate and limit", function()
    assert.equal("RateLimitConfig.rate: expected a finite number > 0, got nil",
      refused(opero.RateLimitConfig).message)
    assert.equal("RateLimitConfig.rate: expected a finite number > 0, got nil",
      refused(opero.RateLimitConfig, { burst = 2 }).message)
    assert.equal('ConcurrencyConfig.limit: expected an integer >= 1, or "adaptive", got nil',
      refused(opero.ConcurrencyConfig, {}).message)
  end)
end)

describe("OrchestratorConfig", function()
  it("may be empty", function()
    assert.same({}, opero.OrchestratorConfig())
    assert.same({}, opero.OrchestratorConfig {})
  end)

  it("completes the tables in it and leaves those given as they were", function()
    local given = {
      retry_config = { max_attempts = 2 }, rate_limit_config = { rate = 1 },
      concurrency_config = { limit = 1 }, fallbacks = noop,
      multiprocess_config = { max_workers = 2 },
    }
    local config = opero.OrchestratorConfig(given)
    assert.same({ max_attempts = 2 }, given.retry_config)
    assert.same({ rate = 1 }, given.rate_limit_config)
    assert.same({ max_workers = 2 }, given.multiprocess_config)
    assert.equal(noop, given.fallbacks)
    assert.equal(60, config.retry_config.wait_max)
    assert.equal(1, config.rate_limit_config.burst)
    assert.equal("fork", config.multiprocess_config.backend)
    assert.same({ noop }, config.fallbacks)
  end)

  it("takes configs that are complete already, and so does Orchestrator", function()
    local config = opero.OrchestratorConfig {
      retry_config = opero.RetryConfig { max_attempts = 2, retry_on = errors.TimeoutError },
      rate_limit_config = opero.RateLimitConfig { rate = 1 },
      concurrency_config = opero.ConcurrencyConfig { limit = 1 },
      multiprocess_config = opero.MultiprocessConfig { max_workers = 1 },
      fallbacks = { noop },
    }
    assert.same(config, opero.OrchestratorConfig(config))
    assert.same(config, opero.Orchestrator({ config = config }).config)
    assert.same(config, opero.Orchestrator(config).config)
  end)
end)

describe("Orchestrator", function()
  it("takes its options in `config` or as they are, or none", function()
    local options = { concurrency_config = { limit = 2 } }
    assert.same(options, opero.Orchestrator({ config = options }).config)
    assert.same(options, opero.Orchestrator(options).config)
    assert.same({}, opero.Orchestrator({ config = {} }).config)
    assert.same({}, opero.Orchestrator({}).config)
    assert.same({}, opero.Orchestrator().config)
  end)

  it("does not take both", function()
    local err = refused(opero.Orchestrator, { config = {}, retry_config = {} })
    assert.equal("retry_config: expected nothing beside config, which holds all options, "
      .. "got a table", err.message)
  end)

  it("does not take anything but a table", function()
    for _, bad in ipairs { 5, "x", true, noop } do
      assert.equal("config", refused(opero.Orchestrator, bad).path)
      assert.equal("config", refused(opero.Orchestrator, { config = bad }).path)
    end
    assert.equal("config: expected a table of options, got false (a boolean)",
      refused(opero.Orchestrator, { config = false }).message)
    assert.equal("config", refused(opero.Orchestrator, false).path)
  end)

  it("does not change when its options do", function()
    local retry_config = { max_attempts = 1 }
    local orch = opero.Orchestrator { retry_config = retry_config }
    retry_config.max_attempts = 5
    local fn, times = support.broken "x"
    raised(orch.execute, orch, fn)
    assert.equal(1, #times)
  end)
end)

-- For every option: what it does not take, and what the message says it takes.
local NAN, INF = 0 / 0, math.huge
local misuse = {
  retry_config = {
    [""] = { { 1, "x", true, noop }, "a table of options" },
    max_attempts = { { 0, -1, 1.5, "three", true, {}, INF, NAN, noop }, "an integer >= 1" },
    wait_min = { { -1, "1", true, {}, INF, -INF, NAN }, "a finite number >= 0" },
    wait_max = { { -0.1, "60", false, {}, INF, NAN }, "a finite number >= 0" },
    wait_multiplier = { { -1, "2", true, {}, INF, NAN }, "a finite number >= 0" },
    jitter = { { "some", 1, true, {}, "" }, 'one of "none", "full", "equal", "decorrelated"' },
    retry_on = {
      { 1, true, {}, errors.OperoError "x" },
      "an error class, a Lua pattern, a predicate, or a list of these that is not empty",
    },
    reraise = { { 1, "true", {} }, "true or false" },
  },
  rate_limit_config = {
    [""] = { { 1, "x", true, noop }, "a table of options" },
    rate = { { 0, -1, "10", true, {}, INF, NAN }, "a finite number > 0" },
    burst = { { 0, -1, 0.5, "1", true, {}, INF, NAN }, "an integer >= 1" },
  },
  concurrency_config = {
    [""] = { { 1, "x", true, noop }, "a table of options" },
    limit = {
      { 0, -1, 0.5, "1", true, {}, INF, NAN, "adaptable" }, 'an integer >= 1, or "adaptive"',
    },
  },
  fallbacks = { [""] = { { 1, "x", true, io.stdout }, "a function or a list of functions" } },
  logger = {
    [""] = {
      { 1, "x", true, {}, noop, io.stdout, { debug = noop, info = noop, warning = noop },
        { debug = noop, info = noop, warning = 1, error = noop },
        setmetatable({}, { __index = function() error "private" end }) },
      "an object with the methods debug, info, warning and error",
    },
  },
  multiprocess_config = {
    [""] = { { 1, "fork", false, io.stdout }, "a table of options" },
    max_workers = { { 0, 1.5, "4", true }, "an integer >= 1" },
    backend = { { "thread", 1, true }, 'one of "fork", "spawn"' },
    task_timeout = { { 0, -1, "1", math.huge }, "a finite number > 0" },
  },
}

-- What the options need beside them.
local company = { rate_limit_config = { rate = 1 } }

for section, options in pairs(misuse) do
  for option, case in pairs(options) do
    local path = option == "" and section or section .. "." .. option

    it("config." .. path .. " refuses what it does not take", function()
      for _, bad in ipairs(case[1]) do
        local given = { [section] = bad }
        if option ~= "" then
          given[section] = { [option] = bad }
          for name, value in pairs(company[section] or {}) do
            given[section][name] = given[section][name] or value
          end
        end
        for _, form in ipairs { given, { config = given } } do
          local err = refused(opero.Orchestrator, form)
          assert.equal("config." .. path, err.path)
          assert.equal(case[2], err.allowed)
          if bad == bad then
            assert.equal(bad, err.value)
          end
          assert.equal(1, (err.message:find("config." .. path .. ": expected ", 1, true)))
        end
        assert.equal("OrchestratorConfig." .. path, refused(opero.OrchestratorConfig, given).path)
        refused(opero.orchestrate, given)
      end
    end)
  end
end

describe("an unknown option", function()
  local function message(given)
    return refused(opero.Orchestrator, given).message
  end

  it("is named by its path, with the one that was meant", function()
    for _, form in ipairs {
      { retry_config = { max_attempt = 3 } },
      { config = { retry_config = { max_attempt = 3 } } },
      { config = { retry_config = { maxAttempts = 3 } } },
    } do
      assert.matches(
        '^config%.retry_config%.max_?[aA]ttempts?: unknown option; did you mean "max_attempts"%?$',
        message(form))
    end
    assert.equal('config.retry: unknown option; did you mean "retry_config"?',
      message { retry = {} })
    assert.equal('config.fallback: unknown option; did you mean "fallbacks"?',
      message { fallback = noop })
    assert.equal('config.rate_limit_config.rates: unknown option; did you mean "rate"?',
      message { rate_limit_config = { rates = 1 } })
    assert.equal('config.concurrency_config.limits: unknown option; did you mean "limit"?',
      message { concurrency_config = { limits = 1 } })
  end)

  it("without one near is answered with the list", function()
    assert.equal("config.zebra: unknown option; the options are arg_fallback, cache_config, "
      .. "chaos_config, circuit_breaker_config, concurrency_config, fallback_on, fallbacks, "
      .. "hedge_config, logger, multiprocess_config, name, on, rate_limit_config, retry_config, "
      .. "timeout_config", message { zebra = 1 })
    assert.equal("config.rate_limit_config.zebra: unknown option; the options are burst, cost, "
      .. "key, max_keys, max_wait, mode, rate",
      message { rate_limit_config = { rate = 1, zebra = "reject" } })
  end)
end)
