local metrics = require "opero.metrics"
local opero = require "opero"
local support = require "spec.support"

local broken, failing, refused = support.broken, support.failing, support.refused
local simulated = support.simulated

local function echo(...) return ... end

describe("stats", function()
  it("of an orchestrator that has done nothing are zeros", function()
    local stats = opero.Orchestrator({}):stats()
    assert.same({
      executions = 0, succeeded = 0, failed = 0, cancelled = 0, events = {},
      latency = { count = 0 },
    }, stats)
    assert.is_nil(opero.Orchestrator({}):percentile(0.5))
  end)

  it("count executions by outcome, of every kind", simulated(function()
    local orch = opero.Orchestrator { concurrency_config = { limit = 3 } }
    orch:execute(echo)
    orch:try((broken "x"))
    orch:try(function() return nil, "no" end)
    orch:map(function(x) return x > 1 and x or nil, "no" end, { 1, 2, 3 }, { on_error = "collect" })
    for _ in orch:imap(echo, { 1, 2 }) do end
    orch:process({ echo, echo }, 1, 2)
    local task = opero.spawn(orch.execute, orch, opero.sleep, 9)
    opero.sleep(1)
    task:cancel()
    opero.sleep(1)
    local stats = orch:stats()
    assert.same({ 13, 9, 3, 1 },
      { stats.executions, stats.succeeded, stats.failed, stats.cancelled })
    assert.equal(12, stats.latency.count)
  end))

  it("count the mended ones as successes, and events by name", simulated(function()
    local orch = opero.Orchestrator { retry_config = {}, fallbacks = opero.value(1) }
    orch:execute((failing("a", "b")))
    orch:execute((broken "x"))
    local stats = orch:stats()
    assert.same({ 2, 2 }, { stats.executions, stats.succeeded })
    assert.same({ retry = 4, retries_exhausted = 1, fallback = 1 }, stats.events)
  end))

  it("are a copy", simulated(function()
    local orch = opero.Orchestrator { retry_config = {} }
    orch:execute((failing "x"))
    orch:stats().events.retry = 99
    assert.equal(1, orch:stats().events.retry)
  end))

  it("know of permits and of the circuit breaker", simulated(function()
    local orch = opero.Orchestrator {
      concurrency_config = { limit = 1 }, circuit_breaker_config = { failures = 1 },
    }
    opero.spawn(orch.execute, orch, opero.sleep, 1)
    opero.spawn(orch.execute, orch, opero.sleep, 1)
    opero.yield()
    assert.same({ limit = 1, in_flight = 1, waiting = 1 }, orch:stats().concurrency)
    assert.equal("closed", orch:stats().circuit_breaker.state)
    opero.sleep(5)
    orch:try((broken "x"))
    assert.equal("open", orch:stats().circuit_breaker.state)
    local shared = opero.CircuitBreaker { failures = 1 }
    shared:open()
    orch = opero.Orchestrator { circuit_breaker_config = shared }
    assert.equal("open", orch:stats().circuit_breaker.state)
  end))

  it("go on under another clock", function()
    local orch = opero.Orchestrator {}
    orch:execute(echo)
    opero.simulate(function() orch:execute(opero.sleep, 5) end)
    opero.simulate(function() orch:execute(opero.sleep, 7) end)
    assert.equal(3, orch:stats().executions)
    assert.equal(7, orch:stats().latency.max)
  end)
end)

describe("percentiles", function()
  -- Durations of `count` executions, as they were measured.
  local function measure(count, duration)
    local orch, durations = opero.Orchestrator {}, {}
    local state = 1
    local function random()
      state = state * 6364136223846793005 + 1442695040888963407
      return (state >> 11) * 0x1p-53
    end
    opero.simulate(function()
      for i = 1, count do
        local began = opero.now()
        orch:execute(opero.sleep, duration(random()))
        durations[i] = opero.now() - began
      end
    end)
    table.sort(durations)
    return orch, durations
  end

  for name, duration in pairs {
    ["even"] = function(u) return u end,
    ["exponential"] = function(u) return -0.05 * math.log(1 - u) end,
    ["of a heavy tail"] = function(u) return 0.001 * (1 - u) ^ -1.4 end,
    ["of two humps"] = function(u) return u < 0.9 and 0.001 + u / 1000 or 2 + u end,
    ["all the same"] = function() return 0.0123 end,
  } do
    it("of durations that are " .. name .. " are within 1 %", function()
      local count <const> = 2000
      local orch, durations = measure(count, duration)
      local before = 0
      for _, fraction in ipairs { 0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1 } do
        local expected = durations[math.max(1, math.ceil(fraction * count))]
        local got = orch:percentile(fraction)
        assert.near(expected, got, 0.01 * expected + 1e-9)
        assert.is_true(got >= before)
        before = got
      end
      local latency, sum = orch:stats().latency, 0
      for _, seconds in ipairs(durations) do
        sum = sum + seconds
      end
      assert.equal(count, latency.count)
      assert.near(sum / count, latency.mean, 1e-6 * sum / count)
      assert.near(durations[1], latency.min, 1e-9)
      assert.near(durations[count], latency.max, 1e-6)
      for key, fraction in pairs { p50 = 0.5, p90 = 0.9, p99 = 0.99, p999 = 0.999 } do
        assert.equal(orch:percentile(fraction), latency[key])
      end
    end)
  end

  it("refuse what is no fraction", function()
    local orch = opero.Orchestrator {}
    for _, bad in ipairs { -0.01, 1.01, 95, 0 / 0, "0.5", {} } do
      local err = refused(orch.percentile, orch, bad)
      assert.equal("percentile.fraction", err.path)
      assert.equal("a number from 0 to 1", err.allowed)
    end
    assert.equal("percentile.fraction", refused(orch.percentile, orch).path)
  end)

  it("do not need memory for each execution", function()
    local orch = opero.Orchestrator {}
    local function call()
      for _ = 1, 20000 do
        orch:execute(echo)
      end
    end
    call()
    collectgarbage()
    collectgarbage()
    local before = collectgarbage "count"
    call()
    collectgarbage()
    collectgarbage()
    assert.is_true(collectgarbage "count" - before < 8)
  end)
end)

describe("opero.metrics.prometheus", function()
  -- The lines of it that are about this orchestrator.
  local function lines_of(name)
    local list = {}
    for line in opero.metrics.prometheus():gmatch("[^\n]+") do
      if line:find(('orchestrator="%s"'):format(name), 1, true) then
        list[#list + 1] = line
      end
    end
    return list
  end

  -- Names are never used twice here: what is not collected yet is still told of.
  before_each(function()
    collectgarbage()
    collectgarbage()
  end)

  it("tells of counts, events, durations, permits and the breaker", simulated(function()
    local orch = opero.Orchestrator {
      name = "all of it",
      retry_config = { max_attempts = 2 },
      concurrency_config = { limit = 4 },
      circuit_breaker_config = { failures = 2 },
    }
    orch:execute(opero.sleep, 0.02)
    orch:execute(opero.sleep, 40)
    orch:execute(opero.sleep, 90)
    orch:try((broken "x"))
    local expected = {
      'opero_executions_total{orchestrator="all of it",outcome="succeeded"} 3',
      'opero_executions_total{orchestrator="all of it",outcome="failed"} 1',
      'opero_executions_total{orchestrator="all of it",outcome="cancelled"} 0',
      'opero_events_total{orchestrator="all of it",event="breaker_open"} 1',
      'opero_events_total{orchestrator="all of it",event="retries_exhausted"} 1',
      'opero_events_total{orchestrator="all of it",event="retry"} 1',
    }
    for _, bucket in ipairs {
      { "0.001", 0 }, { "0.0025", 0 }, { "0.005", 0 }, { "0.01", 0 }, { "0.025", 1 }, { "0.05", 1 },
      { "0.1", 1 }, { "0.25", 1 }, { "0.5", 1 }, { "1", 2 }, { "2.5", 2 }, { "5", 2 }, { "10", 2 },
      { "30", 2 }, { "60", 3 }, { "+Inf", 4 },
    } do
      expected[#expected + 1] =
        ('opero_execution_seconds_bucket{orchestrator="all of it",le="%s"} %d')
          :format(table.unpack(bucket))
    end
    for _, line in ipairs {
      'opero_execution_seconds_sum{orchestrator="all of it"} 131.02',
      'opero_execution_seconds_count{orchestrator="all of it"} 4',
      'opero_concurrency{orchestrator="all of it",what="in_flight"} 0',
      'opero_concurrency{orchestrator="all of it",what="limit"} 4',
      'opero_concurrency{orchestrator="all of it",what="waiting"} 0',
      'opero_circuit_breaker_open{orchestrator="all of it"} 1',
    } do
      expected[#expected + 1] = line
    end
    assert.same(expected, lines_of "all of it")
  end))

  -- After the text format 0.0.4: every sample is of the family whose head stands before it.
  it("is well formed", simulated(function()
    local held = {}
    for i, config in ipairs {
      {}, { concurrency_config = { limit = "adaptive" } }, { circuit_breaker_config = {} },
    } do
      config.name = "well formed " .. i
      held[i] = opero.Orchestrator(config)
      held[i]:execute(opero.sleep, 1 / 3)
    end
    local text = opero.metrics.prometheus()
    assert.equal("\n", text:sub(-1))
    local family, kind, seen = nil, nil, {}
    for line in text:gmatch("([^\n]*)\n") do
      local help = line:match("^# HELP ([%w_]+) .+%.$")
      local name, type = line:match("^# TYPE ([%w_]+) (%l+)$")
      if help then
        assert.is_nil(seen[help], help .. " comes twice")
        family, kind, seen[help] = help, nil, true
      elseif name then
        assert.equal(family, name)
        kind = type
      else
        local sample, labels, value = line:match("^([%w_]+){(.+)} ([%d.e+-]+)$")
        assert.is_string(sample, line)
        local suffix = sample:sub(#family + 1)
        assert.equal(family, sample:sub(1, #family))
        assert.is_true(suffix == "" or kind == "histogram"
          and (suffix == "_bucket" or suffix == "_sum" or suffix == "_count"), line)
        assert.is_number(tonumber(value))
        assert.equal("", (labels:gsub('[%a_]+="[^"]*",?', "")))
      end
    end
    assert.is_true(seen.opero_concurrency and seen.opero_circuit_breaker_open)
  end))

  it("has buckets that are cumulative", simulated(function()
    local orch = opero.Orchestrator { name = "buckets" }
    for i = 1, 500 do
      orch:execute(opero.sleep, (i / 500) ^ 6 * 100)
    end
    local before = 0
    for _, line in ipairs(lines_of "buckets") do
      local bound, count = line:match('_bucket.*le="(.-)"} (%d+)$')
      if bound then
        count = tonumber(count)
        assert.is_true(count >= before)
        before = count
        if bound ~= "+Inf" then
          local exact = math.floor((tonumber(bound) / 100) ^ (1 / 6) * 500)
          assert.near(math.min(500, exact), count, 2)
        end
      end
    end
    assert.equal(500, before)
  end))

  it("escapes names", simulated(function()
    local orch = opero.Orchestrator { name = 'a "b"\\\nc \xff' }
    orch:execute(echo)
    assert.is_truthy(opero.metrics.prometheus():find(
      [[opero_execution_seconds_count{orchestrator="a \"b\"\\\nc ?"} 1]], 1, true))
    orch = opero.Orchestrator { name = "größe" }
    assert.equal("größe", orch.config.name)
    assert.is_truthy(opero.metrics.prometheus():find('orchestrator="größe"', 1, true))
  end))

  it("leaves out those without a name, and what there is not", simulated(function()
    opero.Orchestrator({ concurrency_config = { limit = 1 } }):execute(echo)
    local orch = opero.Orchestrator { name = "plain" }
    local text = opero.metrics.prometheus()
    assert.is_nil(text:find('orchestrator=""', 1, true))
    assert.is_nil(text:find('opero_concurrency{orchestrator="plain"', 1, true))
    assert.is_nil(text:find('opero_circuit_breaker_open{orchestrator="plain"', 1, true))
    assert.equal(0, orch:stats().executions)
  end))

  it("leaves out the state of a breaker that has keys", simulated(function()
    local orch = opero.Orchestrator {
      name = "keys", circuit_breaker_config = { failures = 1, key = echo },
    }
    orch:try(function() error "x" end, "a")
    assert.is_nil(opero.metrics.prometheus():find('breaker_open{orchestrator="keys"', 1, true))
    assert.is_truthy(opero.metrics.prometheus():find(
      'opero_events_total{orchestrator="keys",event="breaker_open"} 1', 1, true))
  end))

  it("gives a name to the orchestrator that was made last", simulated(function()
    local first = opero.Orchestrator { name = "same" }
    first:execute(echo)
    local second = opero.Orchestrator { name = "same" }
    assert.equal('opero_executions_total{orchestrator="same",outcome="succeeded"} 0',
      lines_of("same")[1])
    second:execute(echo)
    assert.equal('opero_executions_total{orchestrator="same",outcome="succeeded"} 1',
      lines_of("same")[1])
    assert.equal(1, first:stats().succeeded)
  end))

  it("does not keep orchestrators alive", function()
    do
      local orch = opero.Orchestrator { name = "gone" }
      orch:execute(echo)
      assert.is_true(#lines_of "gone" > 0)
    end
    collectgarbage()
    collectgarbage()
    assert.same({}, lines_of "gone")
  end)

  it("can be asked while orchestrators are collected", simulated(function()
    local orch = opero.Orchestrator {}
    local collecting = setmetatable({
      stats = function()
        collectgarbage()
        collectgarbage()
        return orch:stats()
      end,
    }, { __index = orch })
    metrics.register("a", collecting) -- the first by its name
    local function make() opero.Orchestrator({ name = "short-lived" }):execute(echo) end
    make()
    assert.is_truthy(opero.metrics.prometheus():find('{orchestrator="short-lived"', 1, true))
  end))

  it("works in the main chunk, during executions, and when there is nothing to tell", function()
    assert.is_string(opero.metrics.prometheus())
    local orch = opero.Orchestrator { name = "busy", concurrency_config = { limit = 2 } }
    orch:execute(function()
      local lines = table.concat(lines_of "busy", "\n")
      assert.is_truthy(lines:find('what="in_flight"} 1', 1, true))
    end)
  end)
end)

describe("name", function()
  it("has to be a string that is not empty", function()
    for _, bad in ipairs { "", 5, {}, false } do
      assert.equal("config.name", refused(opero.Orchestrator, { name = bad }).path)
    end
  end)
end)
