local backoff = require "opero.backoff"

local function options(given)
  return {
    wait_min = given.wait_min or 1,
    wait_max = given.wait_max or 60,
    wait_multiplier = given.wait_multiplier or 1,
    jitter = given.jitter or "none",
  }
end

local function constant(number)
  return function() return number end
end

local never = function() error "no jitter asks for no random number" end
local ALMOST_ONE = 1 - 2.0 ^ -53

-- The waits after attempts 1 to n, each handed on as the previous one.
local function waits(given, n, random)
  local wait, list, previous = backoff.exponential(options(given)), {}, nil
  for attempt = 1, n do
    previous = wait(attempt, previous, random)
    list[attempt] = previous
  end
  return list
end

describe("the backoff without jitter", function()
  it("doubles from the multiplier on, up to wait_max", function()
    assert.same({ 1, 2, 4, 8, 16, 32, 60, 60 }, waits({}, 8, never))
    assert.same({ 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5 },
      waits({ wait_min = 0.1, wait_multiplier = 0.1, wait_max = 5 }, 8, never))
  end)

  it("is not below wait_min", function()
    assert.same({ 3, 3, 4, 8 }, waits({ wait_min = 3 }, 4, never))
  end)

  it("is wait_min without a multiplier, for any attempt", function()
    local wait = backoff.exponential(options { wait_multiplier = 0, wait_min = 0.5 })
    for _, attempt in ipairs { 1, 2, 1024, 1025, 1e6, math.maxinteger } do
      assert.equal(0.5, wait(attempt, nil, never))
    end
  end)

  it("is wait_max for attempts whose power no number can hold", function()
    local wait = backoff.exponential(options { wait_multiplier = 1e-300, wait_max = 7 })
    for _, attempt in ipairs { 1024, 1025, 1026, 1e6, math.maxinteger } do
      assert.equal(7, wait(attempt, nil, never))
    end
  end)

  it("may be zero", function()
    assert.same({ 0, 0, 0 }, waits({ wait_min = 0, wait_max = 0 }, 3, never))
  end)
end)

-- For each mode the bounds of the wait after attempts 1 to 5, when every one was at its bound.
local bounds = {
  full = {
    lowest = { 0.5, 0.5, 0.5, 0.5, 0.5 },
    highest = { 1, 2, 4, 8, 10 },
  },
  equal = {
    lowest = { 0.5, 1, 2, 4, 5 },
    highest = { 1, 2, 4, 8, 10 },
  },
  decorrelated = {
    lowest = { 0.5, 0.5, 0.5, 0.5, 0.5 },
    highest = { 1, 2, 4, 8, 10 },
  },
}

for mode, expected in pairs(bounds) do
  describe("the backoff with jitter " .. mode, function()
    local given = { wait_min = 0.5, wait_max = 10, jitter = mode }

    it("is at its lower bound for the random number 0", function()
      assert.same(expected.lowest, waits(given, 5, constant(0)))
    end)

    it("comes up to its upper bound, and never above", function()
      for attempt, wait in ipairs(waits(given, 5, constant(ALMOST_ONE))) do
        assert.is_true(wait <= expected.highest[attempt])
        assert.near(expected.highest[attempt], wait, 1e-12)
      end
    end)

    it("is spread evenly in between", function()
      local wait = backoff.exponential(options(given))
      local low, high = wait(3, 4, constant(0)), wait(3, 4, constant(ALMOST_ONE))
      assert.near((low + high) / 2, wait(3, 4, constant(0.5)), 1e-12)
      assert.near(low + (high - low) / 4, wait(3, 4, constant(0.25)), 1e-12)
    end)

    it("is not below wait_min where the base is less", function()
      assert.same({ 8, 8 }, waits({ wait_min = 8, wait_max = 8, jitter = mode }, 2, constant(0.5)))
    end)

    it("does not leave its bounds by rounding", function()
      local wait = backoff.exponential(options {
        wait_min = 0.1, wait_max = 0.3, wait_multiplier = 0.3, jitter = mode,
      })
      for i = 0, 1000 do
        local seconds = wait(1, nil, constant(math.min(ALMOST_ONE, i / 1000)))
        assert.is_true(seconds >= 0.1 and seconds <= 0.3)
      end
    end)
  end)
end

describe("the decorrelated backoff", function()
  local wait = backoff.exponential(options {
    wait_min = 1, wait_max = 1000, jitter = "decorrelated",
  })

  it("goes up to three times the previous wait where that is below the base", function()
    assert.equal(1 + 5 * 0.5, wait(10, 2, constant(0.5)))
  end)

  it("starts from the first base", function()
    local scaled = backoff.exponential(options {
      wait_min = 1, wait_max = 1000, wait_multiplier = 10, jitter = "decorrelated",
    })
    assert.equal(1 + 9 * 0.5, scaled(1, nil, constant(0.5)))
    assert.equal(1 + 19 * 0.5, scaled(2, nil, constant(0.5)))
    assert.equal(1 + 29 * 0.5, scaled(3, nil, constant(0.5)))
  end)

  it("does not fall below wait_min after a short previous wait", function()
    assert.equal(1, wait(10, 0.01, constant(0.9)))
  end)
end)
