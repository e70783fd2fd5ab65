local check = require "opero.check"
local errors = require "opero.errors"

-- The ConfigError that fn raises.
local function refused(fn, ...)
  local ok, err = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_true(errors.is(err, errors.ConfigError), tostring(err))
  return err
end

local spec = {
  fields = {
    attempts = { type = "integer", min = 1, default = 3 },
    rate = { type = "number", above = 0, required = true },
    wait = { type = "number", min = 0, default = 1.5 },
    mode = { type = "enum", values = { "fast", "sound" }, default = "fast" },
    strict = { type = "boolean", default = true },
    limits = { type = "options", options = { fields = { high = { type = "number" } } } },
    names = { check = check.callables },
  },
}

local function complete(given)
  return check.options(spec, given, "config")
end

describe("a table of options", function()
  it("is completed with the defaults, in a table of its own", function()
    local given = { rate = 2 }
    assert.same({ attempts = 3, rate = 2, wait = 1.5, mode = "fast", strict = true },
      complete(given))
    assert.same({ rate = 2 }, given)
  end)

  it("keeps what is given, false included", function()
    local given = {
      attempts = 1, rate = 0.5, wait = 0, mode = "sound", strict = false, limits = { high = -1 },
    }
    assert.same(given, complete(given))
  end)

  it("comes out the same when it is checked again", function()
    local once = complete { rate = 2, limits = { high = 3 }, names = print }
    assert.same(once, complete(once))
  end)

  it("may inherit options through __index", function()
    local base = setmetatable({ attempts = 9 }, { __index = { rate = 5 } })
    local completed = complete(base)
    assert.equal(9, completed.attempts)
    assert.equal(5, completed.rate)
  end)

  it("turns a float without a fraction into an integer where one is due", function()
    assert.equal("integer", math.type(complete({ rate = 1, attempts = 2.0 }).attempts))
  end)

  it("must be a table", function()
    assert.equal('config: expected a table of options, got "x" (a string)',
      refused(complete, "x").message)
    assert.equal("config.limits: expected a table of options, got true (a boolean)",
      refused(complete, { rate = 1, limits = true }).message)
  end)
end)

describe("a refused option", function()
  it("is named by its path, with the value and what is allowed", function()
    local err = refused(complete, { rate = 1, attempts = "three" })
    assert.equal('config.attempts: expected an integer >= 1, got "three" (a string)', err.message)
    assert.equal("config.attempts", err.path)
    assert.equal("three", err.value)
    assert.equal("an integer >= 1", err.allowed)
  end)

  it("is named by its path in a nested table too", function()
    assert.equal("config.limits.high: expected a finite number, got a table",
      refused(complete, { rate = 1, limits = { high = {} } }).message)
  end)

  it("of integers: not in range, not whole, no number", function()
    for _, bad in ipairs { 0, -1, 1.5, "1", true, {}, math.huge, 0 / 0, print } do
      local err = refused(complete, { rate = 1, attempts = bad })
      assert.equal("config.attempts", err.path)
      assert.equal("an integer >= 1", err.allowed)
    end
  end)

  it("of numbers: not in range, not finite, no number", function()
    for _, bad in ipairs { 0, -1, "1", true, {}, math.huge, -math.huge, 0 / 0 } do
      local err = refused(complete, { rate = bad })
      assert.equal("config.rate", err.path)
      assert.equal("a finite number > 0", err.allowed)
    end
    assert.equal("config.wait: expected a finite number >= 0, got -0.5",
      refused(complete, { rate = 1, wait = -0.5 }).message)
  end)

  it("of booleans and enums", function()
    assert.equal("config.strict: expected true or false, got 1",
      refused(complete, { rate = 1, strict = 1 }).message)
    assert.equal('config.mode: expected one of "fast", "sound", got "slow" (a string)',
      refused(complete, { rate = 1, mode = "slow" }).message)
  end)

  it("is one that is required and left out", function()
    assert.equal("config.rate: expected a finite number > 0, got nil",
      refused(complete, {}).message)
  end)

  it("may be refused for not agreeing with another", function()
    local pair = {
      fields = { low = { type = "number" }, high = { type = "number" } },
      verify = function(options, path)
        if options.low > options.high then
          check.fail(path .. ".high", options.high, "a number >= low")
        end
      end,
    }
    assert.same({ low = 1, high = 2 }, check.options(pair, { low = 1, high = 2 }, "p"))
    assert.equal("p.high: expected a number >= low, got 0",
      refused(check.options, pair, { low = 1, high = 0 }, "p").message)
  end)
end)

describe("an unknown option", function()
  local function advice(key)
    return refused(complete, { rate = 1, [key] = 1 }).message
  end

  it("brings the known one that is near to mind", function()
    assert.equal('config.attempt: unknown option; did you mean "attempts"?', advice "attempt")
    assert.equal('config.atempts: unknown option; did you mean "attempts"?', advice "atempts")
    assert.equal('config.attemtps: unknown option; did you mean "attempts"?', advice "attemtps")
    assert.equal('config.Attempts: unknown option; did you mean "attempts"?', advice "Attempts")
    assert.equal('config.strct: unknown option; did you mean "strict"?', advice "strct")
    assert.equal('config.tempt: unknown option; did you mean "attempts"?', advice "tempt")
  end)

  it("brings the known ones to mind when none is near", function()
    local list = "the options are attempts, limits, mode, names, rate, strict, wait"
    assert.equal("config.colour: unknown option; " .. list, advice "colour")
    assert.equal("config[1]: unknown option; " .. list, advice(1))
    assert.equal('config["no name"]: unknown option; ' .. list, advice "no name")
    assert.equal("config[true]: unknown option; " .. list, advice(true))
    assert.matches("unknown option; " .. list .. "$", advice(("x"):rep(1e6)))
  end)

  it("is told by path, value and the known ones", function()
    local err = refused(complete, { rate = 1, limits = { hihg = 7 } })
    assert.equal("config.limits.hihg", err.path)
    assert.equal(7, err.value)
    assert.equal("the options are high", err.allowed)
  end)

  it("is the first by name when there are several", function()
    for _ = 1, 20 do
      local err = refused(complete, { zz = 1, yy = 1, bb = 1, xx = 1, [9] = 1, [print] = 1 })
      assert.equal("config[9]", err.path)
    end
  end)

  it("may be a key that cannot be printed", function()
    local key = setmetatable({}, { __tostring = function() error "no" end })
    assert.equal("config[(a table that cannot be shown)]", refused(complete, { [key] = 1 }).path)
  end)
end)

describe("a value in a message", function()
  it("is quoted with its type where that could be in doubt", function()
    assert.equal('"3" (a string)', check.show("3"))
    assert.equal([["a\nb\"" (a string)]], check.show('a\nb"'))
    assert.equal('"' .. ("x"):rep(60) .. '..." (a string)', check.show(("x"):rep(61)))
    assert.equal("3", check.show(3))
    assert.equal("2.5", check.show(2.5))
    assert.equal("inf", check.show(math.huge))
    assert.equal("NaN", check.show(0 / 0))
    assert.equal("nil", check.show(nil))
    assert.equal("false (a boolean)", check.show(false))
    assert.equal("a table", check.show({}))
    assert.equal("a function", check.show(print))
    assert.equal("a userdata", check.show(io.stdout))
  end)
end)

describe("a callable", function()
  local object = setmetatable({}, { __call = function() end })
  local hidden = setmetatable({}, { __call = function() end, __metatable = "hidden" })

  it("is a function or has a __call", function()
    assert.is_true(check.is_callable(print))
    assert.is_true(check.is_callable(object))
    assert.is_true(check.is_callable(hidden))
    for _, bad in ipairs { {}, 1, "print", false, io.stdout, setmetatable({}, {}) } do
      assert.is_false(check.is_callable(bad))
    end
    assert.is_false(check.is_callable(nil))
  end)

  it("alone or in a list gives a list of its own", function()
    assert.same({ print }, check.callables(print, "p"))
    assert.same({ object }, check.callables(object, "p"))
    local given = { print, object }
    local list = check.callables(given, "p")
    assert.same(given, list)
    assert.not_equal(given, list)
    assert.same({}, check.callables({}, "p"))
  end)

  it("is asked for by its place in the list", function()
    assert.equal('p[2]: expected a function, got "x" (a string)',
      refused(check.callables, { print, "x" }, "p").message)
    assert.equal("p[1]: expected a function, got nil",
      refused(check.callables, { nil, print }, "p").message)
    assert.equal("p[1]: expected a function, got nil",
      refused(check.callables, { [math.maxinteger] = print }, "p").message)
    assert.equal("p.x: expected nothing: a list has no such key, got a function",
      refused(check.callables, { print, x = print }, "p").message)
    assert.equal("p[0]", refused(check.callables, { [0] = print }, "p").path)
    assert.equal("p[1.5]", refused(check.callables, { [1.5] = print }, "p").path)
    assert.equal("p: expected a function or a list of functions, got 5",
      refused(check.callables, 5, "p").message)
  end)
end)

describe("a constructor of options", function()
  local RateConfig = check.constructor("RateConfig", { fields = {
    rate = { type = "number", above = 0, default = 1 },
  } })

  it("completes a table, or none at all", function()
    assert.same({ rate = 1 }, RateConfig())
    assert.same({ rate = 4 }, RateConfig { rate = 4 })
  end)

  it("begins the paths with its name", function()
    assert.equal("RateConfig.rate", refused(RateConfig, { rate = 0 }).path)
    assert.equal("RateConfig", refused(RateConfig, 5).path)
    assert.equal("RateConfig", refused(RateConfig, false).path)
  end)
end)
