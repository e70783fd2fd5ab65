-- Uses all of the core once, the ways errors take included. The host (memory.c) runs it again and
-- again and refuses it memory at another place each time.
--
-- Returns a list of sections. A section raises an error when something came out otherwise than it
-- must; short of memory it may, and then the error has to say so.

local core, host = ...

local mt = {
  __tostring = function(e)
    local text = e.class .. ": " .. e.message
    for _, err in ipairs(e.errors or {}) do
      text = text .. "\n  " .. tostring(err)
    end
    return text
  end,
}
local cancelled_mt = { __tostring = mt.__tostring }

core.set_error_factory(function(class, message, fields)
  local err = setmetatable({ class = class, message = message },
    class == "CancelledError" and cancelled_mt or mt)
  for k, v in pairs(fields or {}) do
    err[k] = v
  end
  return err
end)

local function expect(ok, what)
  if not ok then
    error("expected: " .. what, 2)
  end
end

--- What is left of an error when the memory was short on its way.
local function expect_failure(class, ok, err)
  expect(not ok, class)
  if type(err) ~= "table" or err.class ~= class then
    error(err, 0)
  end
  return err
end

--- Waits, and does not care for being cancelled.
local function sleep_on(seconds)
  local ok, err = pcall(core.sleep, seconds)
  if not ok and getmetatable(err) ~= cancelled_mt then
    error(err, 0)
  end
end

local function raise(class)
  error(setmetatable({ class = class, message = "on purpose" }, mt))
end

local function closing(fn)
  return setmetatable({}, { __close = fn })
end

local sections = {}
local function section(fn)
  sections[#sections + 1] = fn
end

section(function() -- results of every number, errors of every kind
  core.run(function(...)
    expect(select("#", ...) == 3, "three arguments")
    local none = core.spawn(function() end)
    local one = core.spawn(function() return 1 end)
    local three = core.spawn(function(...) return ... end, 1, nil, 3)
    expect(select("#", none:await()) == 0, "no result")
    expect(one:await() == 1, "one result")
    expect(select("#", three:await()) == 3, "three results")
    for _, value in ipairs { "text", { 1 }, 17, false } do
      local task = core.spawn(function() error(value, 0) end)
      local ok, err = pcall(task.await, task)
      expect(not ok, "an error")
      if err ~= value then
        error(err, 0)
      end
      expect(task:status() == "failed", "failed")
    end
  end, 1, 2, 3)
end)

section(function() -- many timers, in a simulation with a seed
  local last = 0
  core.simulate(function()
    for i = 1, 40 do
      core.spawn(function()
        core.sleep((i * 7) % 10)
        last = core.now()
        core.yield()
      end)
    end
  end, { seed = 3 })
  expect(last == 9, "nine seconds")
end)

section(function() -- a scope: its end, its first failure, several failures, its cancellation
  core.simulate(function()
    local count = 0
    expect(core.scope(function(s)
      for _ = 1, 3 do
        s:spawn(function() core.sleep(1) count = count + 1 end)
      end
      return "done"
    end) == "done", "the scope's result")
    expect(count == 3, "three ended")
    local closed = 0
    expect_failure("Oops", pcall(core.scope, function(s)
      s:spawn(function()
        local function close()
          core.sleep(1)
          closed = closed + 1
        end
        local _ <close> = closing(function() core.shield(close) end)
        core.sleep(10)
      end)
      s:spawn(function() core.sleep(1) raise("Oops") end)
    end))
    expect(closed == 1, "the sibling's pending close")
    local err = expect_failure("AggregateError", pcall(core.scope, function(s)
      s:spawn(function() core.sleep(1) error("a", 0) end)
      s:spawn(function() sleep_on(5) error("b", 0) end)
      sleep_on(5)
      error("c", 0)
    end))
    if #err.errors ~= 3 then
      error(err, 0)
    end
    core.scope(function(s)
      s:spawn(core.sleep, 100)
      core.sleep(1)
      s:cancel("enough")
      core.sleep(1)
    end)
    expect(core.now() < 50, "cancelled early")
  end)
end)

section(function() -- time limits
  core.simulate(function()
    expect(core.timeout(1, function() return 5 end) == 5, "in time")
    expect_failure("TimeoutError", pcall(core.timeout, 1, function()
      core.spawn(core.sleep, 50)
      core.sleep(100)
    end))
    expect_failure("TimeoutError", pcall(core.timeout, 1, function()
      core.timeout(5, core.sleep, 10)
    end))
    local task = core.spawn(core.sleep, 1000)
    expect_failure("TimeoutError", pcall(task.await, task, 1))
    expect(task:cancel("no more"), "cancelled")
    expect_failure("CancelledError", pcall(task.await, task))
    core.shield(function() core.sleep(1) end)
  end)
end)

section(function() -- semaphore: handed over, timed out, cancelled when it had been handed over
  core.simulate(function()
    local semaphore = core.semaphore(1)
    semaphore:acquire()
    local function worker()
      semaphore:acquire()
      semaphore:release()
    end
    local first, second = core.spawn(worker), core.spawn(worker)
    expect_failure("TimeoutError", pcall(semaphore.acquire, semaphore, 1))
    semaphore:release()
    first:cancel()
    second:await()
    expect_failure("CancelledError", pcall(first.await, first))
    expect(semaphore:available() == 1, "one permit")
  end)
end)

section(function() -- channel: buffered and not, messages given back, closed
  core.simulate(function()
    for capacity = 0, 2 do
      local channel, got = core.channel(capacity), {}
      core.scope(function(s)
        s:spawn(function()
          for i = 1, 6 do
            channel:send(i)
          end
          channel:close()
        end)
        s:spawn(function()
          for message in channel:iter() do
            got[#got + 1] = message
          end
        end)
      end)
      expect(#got == 6 and got[6] == 6, "six messages")
    end
    local channel = core.channel(1)
    local receiver = core.spawn(channel.receive, channel)
    core.yield()
    channel:send("back")
    receiver:cancel()
    local received, message = pcall(receiver.await, receiver)
    if not received then
      message = channel:receive()
    end
    expect(message == "back", "what the cancelled one had been given")
    if received then -- it could not be taken back
      error("not enough memory", 0)
    end
    channel:send(1)
    expect_failure("TimeoutError", pcall(channel.send, channel, 2, 1))
    channel:close()
    expect_failure("ClosedError", pcall(channel.send, channel, 3))
  end)
end)

section(function() -- event, callbacks, generators
  core.simulate(function()
    local event = core.event()
    core.spawn(function() core.sleep(1) event:set() end)
    expect(event:wait(5), "the event")
    event:clear()
    expect_failure("TimeoutError", pcall(event.wait, event, 1))
    local a, b = core.await(function(resume) resume(1, 2) end)
    expect(a == 1 and b == 2, "called back at once")
    a = core.await(function(resume)
      core.spawn(function() core.sleep(1) resume("later") end)
    end)
    expect(a == "later", "called back later")
    local generator = core.wrap(function()
      for i = 1, 3 do
        core.sleep(1)
        coroutine.yield(i)
      end
    end)
    local sum = 0
    for i in generator do
      sum = sum + i
    end
    expect(sum == 6, "all of the generator")
  end)
end)

section(function() -- failures nobody awaited: in a task, and outside any
  expect_failure("AggregateError", pcall(core.run, function()
    core.spawn(error, "x", 0)
    core.spawn(error, "y", 0)
  end))
  core.spawn(raise, "Stray")
  local ok, err
  for _ = 1, 5 do -- it comes to light in one of them
    local stepped, failure = pcall(core.step)
    if not stepped then
      ok, err = stepped, err or failure
    end
  end
  expect_failure("Stray", ok, err)
end)

section(function() -- a deadlock is explained, tasks can be listed
  local err = expect_failure("DeadlockError", pcall(core.simulate, function()
    local event = core.event()
    core.spawn(function() event:wait() end):name("waiter")
    core.yield()
    local list = core.tasks()
    expect(#list == 2, "two tasks")
    expect(type(list[1].task:traceback()) == "string", "a traceback")
    local _ <close> = closing(function() pcall(event.wait, event, 1) end)
    event:wait()
  end))
  expect(#err.waiters == 2, "two that wait")
end)

section(function() -- descriptors: ready, timed out, cancelled, closed while waited for
  local input, output = host.pipe()
  core.run(function()
    expect(core.wait(output, "w") == "w", "writable")
    expect_failure("TimeoutError", pcall(core.wait, input, "r", 0.0001))
    local reader = core.spawn(function() return core.wait(input, "r") end)
    core.yield()
    host.write(output)
    expect(reader:await() == "r", "readable")
    host.read(input)
    reader = core.spawn(core.wait, input, "rw")
    core.yield()
    reader:cancel()
    pcall(reader.await, reader)
    local orphan = core.spawn(function() return pcall(core.wait, input, "r") end)
    core.yield()
    host.close(input)
    input = nil
    expect(orphan:await() == false, "closed")
  end)
  if input then
    host.close(input)
  end
  host.close(output)
end)

section(function() -- layers
  local layer = core.guard(core.invoke, function(err)
    return false, type(err) == "number" and err + 1 or err
  end)
  local function outcome(wanted, ok, value)
    if ok ~= wanted[1] or value ~= wanted[2] then
      error(value, 0)
    end
  end
  outcome({ true, 2 }, layer(function(x) return x + 1 end, 1))
  outcome({ false, 4 }, layer(function() return nil, 3 end))
  outcome({ false, 6 }, layer(error, 5))
  core.traceback(5)
  expect(not pcall(core.reraise, 5), "raised again")
end)

section(function() -- what is left suspended for lua_close to deal with
  local channel, semaphore = core.channel(0), core.semaphore(0)
  local closed = closing(function() host.closed() end)
  core.spawn(function() local _ <close> = closed channel:receive() end)
  core.spawn(function() local _ <close> = closed core.sleep(1000) end)
  core.spawn(function() local _ <close> = closed semaphore:acquire(1000) end)
  core.spawn(function() core.scope(function(s) s:spawn(core.sleep, 1000) channel:receive() end) end)
  core.spawn(function() core.await(function() end) end)
  core.spawn(function() core.wait(host.input, "r", 1000) end)
  core.step()
  channel:send("handed over, and never seen")
  core.spawn(core.sleep, 1) -- never begins
end)

return sections
