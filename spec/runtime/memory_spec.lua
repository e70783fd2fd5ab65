-- What the runtime allocates, and that it lets go of it.

local opero = require "opero"
local support = require "spec.runtime.support"

local simulated = support.simulated

-- The bytes that fn has allocated and not freed, with the collector at rest meanwhile.
local function allocated_by(fn)
  collectgarbage()
  collectgarbage("stop")
  local _ <close> = support.closing(function() collectgarbage("restart") end)
  local before = collectgarbage("count")
  fn()
  return (collectgarbage("count") - before) * 1024
end

describe("the runtime", function()
  it("allocates nothing to switch between tasks", simulated(function()
    local done = false
    for _ = 1, 10 do
      opero.spawn(function()
        while not done do
          opero.yield()
        end
      end)
    end
    opero.yield()
    assert.equal(0, allocated_by(function()
      for _ = 1, 1000 do
        opero.yield()
      end
    end))
    done = true
  end))

  it("allocates nothing to sleep, acquire, wait and pass messages", simulated(function()
    local semaphore, event = opero.semaphore(1), opero.event()
    local channel, answer = opero.channel(0), opero.channel(0)
    local echo = opero.spawn(function()
      while true do
        answer:send(channel:receive())
      end
    end)
    event:set()
    local function work()
      for _ = 1, 1000 do
        opero.sleep(1)
        semaphore:acquire()
        semaphore:release()
        event:wait()
        channel:send(true)
        answer:receive()
      end
    end
    work()
    assert.is_true(allocated_by(work) < 1000)
    echo:cancel()
  end))

  it("reuses the coroutines of tasks that have ended", simulated(function()
    local function spawn_many()
      for _ = 1, 1000 do
        opero.spawn(opero.yield):await()
      end
    end
    spawn_many()
    -- A coroutine alone takes about 1000 bytes.
    assert.is_true(allocated_by(spawn_many) / 1000 < 400)
  end))

  it("lets go of tasks, their arguments, results and errors", simulated(function()
    local weak = setmetatable({}, { __mode = "k" })
    local function make()
      local value = {}
      weak[value] = true
      return value
    end
    for _ = 1, 20 do
      weak[opero.spawn(function(x) return x end, make())] = true
      local failing = opero.spawn(error, make())
      weak[failing] = true
      pcall(failing.await, failing)
      local cancelled = opero.spawn(opero.sleep, 10, make())
      weak[cancelled] = true
      opero.yield()
      cancelled:cancel(make())
      pcall(opero.timeout, 1, opero.await, function(resume) weak[resume] = true end)
      local channel = opero.channel(1)
      channel:send(make())
      pcall(channel.send, channel, make(), 0)
      weak[channel] = true
      pcall(opero.scope, function(s)
        weak[s] = true
        s:spawn(error, make())
      end)
    end
    support.settle()
    -- Coroutines kept for reuse hold what was last on their stacks until they are used again.
    for _ = 1, 3 do
      collectgarbage()
    end
    local left = 0
    for _ in pairs(weak) do
      left = left + 1
    end
    assert.is_true(left <= 4, left .. " values are still held")
  end))

  it("holds no more after a hundred thousand tasks than before them", simulated(function()
    local function work(count)
      opero.scope(function(s)
        for i = 1, count do
          s:spawn(opero.sleep, i % 10)
        end
      end)
    end
    work(1000)
    collectgarbage()
    local before = collectgarbage("count")
    for _ = 1, 10 do
      work(10000)
    end
    collectgarbage()
    assert.is_true(collectgarbage("count") - before < 1024)
  end))

  it("keeps alive a task that nothing but the runtime refers to", simulated(function()
    local done = 0
    for _ = 1, 10 do
      opero.spawn(function()
        local event = opero.event()
        opero.spawn(function()
          opero.sleep(1)
          event:set()
        end)
        event:wait()
        done = done + 1
      end)
    end
    for _ = 1, 5 do
      collectgarbage()
      opero.sleep(0.5)
    end
    assert.equal(10, done)
  end))
end)
