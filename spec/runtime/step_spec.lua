-- step, pollfd and deadline: for a host that has an event loop of its own.

local opero = require "opero"
local poll = require "posix.poll"
local support = require "spec.runtime.support"
local unistd = require "posix.unistd"

local raised = support.raised

-- Steps until the task has ended; each step must be worth it.
local function step_until_ended(task, most)
  for _ = 1, most do
    if not (task:status() == "ready" or task:status() == "suspended") then
      return
    end
    opero.step()
  end
  assert.not_equal("suspended", task:status())
end

describe("opero.step", function()
  it("resumes each task that is ready, once", function()
    local steps = 0
    local task = opero.spawn(function()
      for _ = 1, 3 do
        steps = steps + 1
        opero.yield()
      end
    end)
    for i = 1, 3 do
      assert.is_true(opero.step())
      assert.equal(i, steps)
    end
    assert.is_false(opero.step())
    assert.equal("done", task:status())
  end)

  it("says whether there are tasks left", function()
    assert.is_false(opero.step())
    local event = opero.event()
    opero.spawn(event.wait, event)
    assert.is_true(opero.step())
    assert.is_true(opero.step())
    event:set()
    assert.is_false(opero.step())
  end)

  it("does not wait unless told to", function()
    local task = opero.spawn(opero.sleep, 60)
    local before = opero.now()
    for _ = 1, 10 do
      opero.step()
      opero.step(0)
      opero.step(-1)
    end
    assert.is_true(opero.now() - before < 30)
    task:cancel()
    opero.step()
  end)

  it("waits for as long as it is told, and no longer", function()
    local task = opero.spawn(opero.sleep, 60)
    opero.step()
    local before = opero.now()
    opero.step(0.001)
    local took = opero.now() - before
    assert.is_true(took >= 0.001 and took < 30)
    assert.equal("suspended", task:status())
    task:cancel()
    opero.step()
  end)

  it("waits for a timer, and no longer", function()
    local task = opero.spawn(opero.sleep, 0.002)
    local before = opero.now()
    opero.step()
    opero.step(60)
    assert.equal("done", task:status())
    assert.is_true(opero.now() - before < 30)
  end)

  it("waits for a descriptor", function()
    local r, w = unistd.pipe()
    local task = opero.spawn(opero.wait, r, "r")
    opero.step()
    unistd.write(w, "x")
    opero.step(60)
    assert.equal("r", task:await())
    unistd.close(r)
    unistd.close(w)
  end)

  it("notices a descriptor without waiting, too", function()
    local r, w = unistd.pipe()
    local task = opero.spawn(opero.wait, r, "r")
    opero.step()
    opero.step()
    assert.equal("suspended", task:status())
    unistd.write(w, "x")
    opero.step()
    assert.equal("done", task:status())
    unistd.close(r)
    unistd.close(w)
  end)

  it("with a timeout of math.huge does not wait for what cannot come", function()
    local event = opero.event()
    local task = opero.spawn(event.wait, event)
    opero.step()
    assert.is_true(opero.step(math.huge))
    event:set()
    task:await()
  end)

  it("raises what a task left behind that nobody awaited, once", function()
    local err = {}
    opero.spawn(error, err)
    assert.equal(err, raised(opero.step))
    assert.is_false(opero.step())
  end)

  it("is refused inside a task, in a simulation, and within itself", function()
    assert.matches("opero.step cannot be called in a task", raised(opero.run, function()
      opero.step()
    end))
    assert.matches("opero.step cannot be called in a task", raised(opero.simulate, function()
      opero.step()
    end))
    local err
    opero.run(function()
      setmetatable({}, { __gc = function() err = raised(opero.step) end })
      collectgarbage()
    end)
    assert.matches("opero.step cannot be called", err)
  end)

  it("refuses what is no number of seconds", function()
    assert.matches("number of seconds expected", raised(opero.step, "1"))
    assert.matches("NaN", raised(opero.step, 0 / 0))
  end)
end)

describe("opero.deadline", function()
  it("is nil when no task waits for time", function()
    assert.same({ nil, n = 1 }, table.pack(opero.deadline()))
    local event = opero.event()
    local task = opero.spawn(event.wait, event)
    opero.step()
    assert.is_nil((opero.deadline()))
    event:set()
    task:await()
  end)

  it("is 0 when something is ready", function()
    local task = opero.spawn(opero.yield)
    assert.equal(0, opero.deadline())
    opero.step()
    assert.equal(0, opero.deadline())
    opero.step()
    assert.is_nil((opero.deadline()))
    task:await()
  end)

  it("is how long the first timer takes yet", function()
    local tasks = {}
    for i, seconds in ipairs { 100, 50, 75 } do
      tasks[i] = opero.spawn(opero.sleep, seconds)
    end
    opero.step()
    assert.is_true(opero.deadline() > 40 and opero.deadline() <= 50)
    tasks[2]:cancel()
    assert.equal(0, opero.deadline())
    opero.step()
    assert.is_true(opero.deadline() > 60 and opero.deadline() <= 75)
    tasks[1]:cancel()
    tasks[3]:cancel()
    opero.step()
    assert.is_nil((opero.deadline()))
  end)

  it("is the timeout of a scope, too", function()
    local event = opero.event()
    local task = opero.spawn(opero.timeout, 50, event.wait, event)
    opero.step()
    assert.is_true(opero.deadline() > 40 and opero.deadline() <= 50)
    event:set()
    task:await()
    assert.is_nil((opero.deadline()))
  end)

  it("is 0 when it has passed", function()
    local task = opero.spawn(opero.sleep, 0.001)
    opero.step()
    while opero.deadline() > 0 do end -- luacheck: ignore
    opero.step()
    assert.equal("done", task:status())
  end)

  it("is of the virtual clock inside a simulation", function()
    opero.simulate(function()
      opero.spawn(opero.sleep, 1000)
      opero.yield()
      assert.equal(1000, opero.deadline())
    end)
  end)
end)

describe("opero.pollfd", function()
  local fd = opero.pollfd()

  it("is a descriptor, or nil and a reason in a build with poll(2)", function()
    if fd == nil then
      assert.matches("no pollable descriptor", select(2, opero.pollfd()))
    else
      assert.equal("integer", math.type(fd))
      assert.equal(fd, opero.pollfd())
    end
  end)

  if fd == nil then
    return
  end

  local function is_readable()
    return poll.rpoll(opero.pollfd(), 0) == 1
  end

  it("becomes readable when a step would find a descriptor ready", function()
    local r, w = unistd.pipe()
    local task = opero.spawn(opero.wait, r, "r")
    opero.step()
    opero.step()
    assert.is_false(is_readable())
    unistd.write(w, "x")
    assert.is_true(is_readable())
    step_until_ended(task, 1)
    assert.is_false(is_readable())
    unistd.close(r)
    unistd.close(w)
  end)

  it("with the deadline is all a host needs", function()
    -- A little event loop of the host's own.
    local r, w = unistd.pipe()
    local received = {}
    local reader = opero.spawn(function()
      for _ = 1, 3 do
        opero.wait(r, "r")
        local text = unistd.read(r, 10)
        received[#received + 1] = text
      end
    end)
    local writer = opero.spawn(function()
      for i = 1, 3 do
        opero.sleep(0.002)
        unistd.write(w, tostring(i))
      end
    end)
    local turns = 0
    while opero.step() do
      local deadline = opero.deadline()
      poll.rpoll(opero.pollfd(), deadline and math.ceil(deadline * 1000) or 60000)
      turns = turns + 1
    end
    assert.same({ "1", "2", "3" }, received)
    assert.equal("done", reader:status())
    assert.equal("done", writer:status())
    assert.is_true(turns < 50, "the host sleeps until there is something to do")
    unistd.close(r)
    unistd.close(w)
  end)
end)
