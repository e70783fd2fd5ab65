local opero = require "opero"
local support = require "spec.runtime.support"

local raised, raised_class, simulated = support.raised, support.raised_class, support.simulated

describe("opero.sleep", function()
  it("suspends for so many seconds, fractions welcome", simulated(function()
    opero.sleep(2)
    assert.equal(2, opero.now())
    opero.sleep(0.5)
    assert.equal(2.5, opero.now())
    opero.sleep(1e-9)
    assert.equal(2.500000001, opero.now())
    assert.equal(0, select("#", opero.sleep(1)))
  end))

  it("of zero or less lets others run and takes no time", simulated(function()
    for _, seconds in ipairs { 0, 0.0, -0.0, -1, -1e300, -math.huge, 1e-12, math.mininteger } do
      local other_ran = false
      opero.spawn(function() other_ran = true end)
      opero.sleep(seconds)
      assert.is_true(other_ran)
      assert.equal(0, opero.now())
    end
  end))

  it("refuses NaN and what is no number, strings of digits included", simulated(function()
    assert.matches("NaN", raised(opero.sleep, 0 / 0))
    assert.matches("number of seconds expected, got no value", raised(opero.sleep))
    assert.matches("number of seconds expected, got nil", raised(opero.sleep, nil))
    for _, value in ipairs { "1", "x", {}, true, print } do
      assert.matches("number of seconds expected, got " .. type(value), raised(opero.sleep, value))
    end
  end))

  it("of math.huge lasts until it is cancelled", simulated(function()
    for _, seconds in ipairs { math.huge, 1e300, math.maxinteger } do
      local task = opero.spawn(opero.sleep, seconds)
      opero.sleep(1)
      assert.equal("suspended", task:status())
      task:cancel()
      raised_class("CancelledError", task.await, task)
    end
  end))

  it("of math.huge lasts until it is cancelled in real time, too", function()
    opero.run(function()
      local task = opero.spawn(opero.sleep, math.huge)
      opero.sleep(0.001)
      assert.equal("suspended", task:status())
      task:cancel()
    end)
    raised_class("TimeoutError", opero.timeout, 0.001, opero.sleep, math.huge)
  end)

  it("of math.huge, with nobody to cancel it, is a deadlock of a simulation", function()
    local err = raised_class("DeadlockError", opero.simulate, function()
      opero.sleep(math.huge)
    end)
    assert.matches("opero.sleep", tostring(err))
  end)

  it("of three centuries is in order", simulated(function()
    opero.sleep(9e9)
    assert.equal(9e9, opero.now())
    local task = opero.spawn(opero.sleep, 9e9) -- beyond the end of time, together
    opero.sleep(1)
    task:cancel()
  end))

  it("in real time takes as long as it says", function()
    local before = opero.now()
    opero.sleep(0.02)
    local took = opero.now() - before
    assert.is_true(took >= 0.02 and took < 5)
  end)

  it("ends in the order of the deadlines, in real time", function()
    local order = {}
    opero.run(function()
      for _, i in ipairs { 5, 3, 1, 4, 2 } do
        opero.spawn(function()
          opero.sleep(i * 0.002)
          order[#order + 1] = i
        end)
      end
    end)
    assert.same({ 1, 2, 3, 4, 5 }, order)
  end)

  it("by a hundred thousand tasks ends for each at its time", simulated(function()
    local late = 0
    opero.scope(function(s)
      for i = 1, 100000 do
        s:spawn(function()
          local seconds = (i * 7919) % 1000
          opero.sleep(seconds)
          late = late + opero.now() - seconds
        end)
      end
    end)
    assert.equal(0, late)
    assert.equal(999, opero.now())
  end))
end)

describe("opero.yield", function()
  it("lets every task that is ready run once", simulated(function()
    local order = {}
    for i = 1, 3 do
      opero.spawn(function()
        for round = 1, 2 do
          order[#order + 1] = round * 10 + i
          opero.yield()
        end
      end)
    end
    opero.yield()
    assert.same({ 11, 12, 13 }, order)
    opero.yield()
    assert.same({ 11, 12, 13, 21, 22, 23 }, order)
  end))

  it("returns nothing", simulated(function()
    assert.equal(0, select("#", opero.yield()))
    assert.equal(0, select("#", opero.yield(1, 2, 3)))
  end))

  it("does not starve timers", function()
    local fired = false
    opero.run(function()
      opero.spawn(function()
        opero.sleep(0.001)
        fired = true
      end)
      while not fired do
        opero.yield() -- a hang here is the failure
      end
    end)
  end)
end)

describe("opero.now", function()
  it("never goes back", function()
    local last = opero.now()
    for _ = 1, 1000 do
      local now = opero.now()
      assert.is_true(now >= last)
      last = now
    end
  end)
end)
