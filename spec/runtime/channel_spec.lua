local opero = require "opero"
local support = require "spec.runtime.support"

local raised, raised_class, simulated = support.raised, support.raised_class, support.simulated

-- A task that receives one message and keeps it in `list` under its number.
local function receiver(channel, list, number)
  return opero.spawn(function()
    list[number] = channel:receive()
  end)
end

-- All that is in the channel.
local function drain(channel)
  local messages = {}
  channel:close()
  for message in channel:iter() do
    messages[#messages + 1] = message
  end
  return messages
end

describe("opero.channel", function()
  it("passes messages on in their order", simulated(function()
    for _, capacity in ipairs { 0, 1, 3, 1000, math.huge } do
      local channel, received = opero.channel(capacity), {}
      opero.scope(function(s)
        s:spawn(function()
          for i = 1, 20 do
            assert.is_true(channel:send(i))
          end
          channel:close()
        end)
        s:spawn(function()
          for message in channel:iter() do
            received[#received + 1] = message
          end
        end)
      end)
      assert.equal(20, #received)
      for i = 1, 20 do
        assert.equal(i, received[i])
      end
    end
  end))

  it("holds as many messages as its capacity says", simulated(function()
    local channel = opero.channel(2)
    channel:send("a")
    channel:send("b")
    assert.equal(2, #channel)
    raised_class("TimeoutError", channel.send, channel, "c", 0)
    assert.equal("a", channel:receive())
    channel:send("c")
    assert.equal("b", channel:receive())
    assert.equal("c", channel:receive())
    assert.equal(0, #channel)
  end))

  it("without capacity hands each message from one task to the other", simulated(function()
    for _, channel in ipairs { opero.channel(0), opero.channel() } do
      local before = opero.now()
      local sent
      opero.spawn(function()
        channel:send("message")
        sent = opero.now()
      end)
      opero.sleep(1)
      assert.is_nil(sent, "the sender waits for a receiver")
      assert.equal("message", channel:receive())
      opero.yield()
      assert.equal(before + 1, sent)
    end
  end))

  it("takes any value but nil", simulated(function()
    local channel = opero.channel(1)
    for _, message in ipairs { false, true, 0, "", {}, print, channel, opero.current() } do
      channel:send(message)
      assert.equal(message, channel:receive())
    end
    assert.matches("nil cannot be sent", raised(channel.send, channel, nil))
    assert.matches("nil cannot be sent", raised(channel.send, channel))
    assert.equal(0, #channel)
  end))

  it("does not end iteration at a message that is false", simulated(function()
    local channel = opero.channel(3)
    channel:send(false)
    channel:send("x")
    assert.same({ false, "x" }, drain(channel))
  end))

  it("serves receivers in their order, and senders in theirs", simulated(function()
    local channel, received = opero.channel(0), {}
    for i = 1, 5 do
      receiver(channel, received, i)
    end
    opero.yield()
    for i = 1, 5 do
      channel:send(i)
    end
    opero.yield()
    assert.same({ 1, 2, 3, 4, 5 }, received)

    local order = {}
    for i = 1, 5 do
      opero.spawn(function()
        channel:send(i)
        order[#order + 1] = i
      end)
    end
    opero.yield()
    for i = 1, 5 do
      assert.equal(i, channel:receive())
    end
    opero.yield()
    assert.same({ 1, 2, 3, 4, 5 }, order)
  end))

  it("lets a waiting sender in before any that comes later", simulated(function()
    local channel = opero.channel(1)
    channel:send(1)
    for i = 2, 4 do
      opero.spawn(channel.send, channel, i)
    end
    opero.yield()
    assert.equal(1, channel:receive())
    raised_class("TimeoutError", channel.send, channel, 5, 0)
    assert.same({ 2, 3, 4 }, { channel:receive(), channel:receive(), channel:receive() })
  end))

  it("raises TimeoutError when it takes too long", simulated(function()
    local channel = opero.channel(0)
    raised_class("TimeoutError", channel.receive, channel, 1)
    assert.equal(1, opero.now())
    raised_class("TimeoutError", channel.send, channel, "late", 1)
    assert.equal(2, opero.now())
    -- Neither has left a trace.
    opero.spawn(channel.send, channel, "message")
    assert.equal("message", channel:receive(1))
    raised_class("TimeoutError", channel.receive, channel, 0)
  end))

  it("refuses what is no capacity", function()
    for _, capacity in ipairs { -1, 1.5, -math.huge, 0 / 0, "1", {}, true } do
      assert.matches("capacity", raised(opero.channel, capacity))
    end
  end)

  it("refuses to be mistaken for something else", simulated(function()
    local channel = opero.channel(1)
    for _, method in ipairs { "send", "receive", "close", "iter", "is_closed" } do
      assert.matches("opero.Channel expected", raised(channel[method], opero.event(), 1))
    end
  end))

  it("carries a hundred thousand messages", simulated(function()
    for _, capacity in ipairs { 0, 16 } do
      local channel, sum = opero.channel(capacity), 0
      opero.scope(function(s)
        for _ = 1, 10 do
          s:spawn(function()
            for i = 1, 5000 do
              channel:send(i)
            end
          end)
          s:spawn(function()
            for _ = 1, 5000 do
              local message = channel:receive()
              sum = sum + message
            end
          end)
        end
      end)
      assert.equal(10 * 5000 * 5001 // 2, sum)
    end
  end))
end)

describe("channel:close", function()
  it("lets the messages that are there be received", simulated(function()
    local channel = opero.channel(3)
    channel:send(1)
    channel:send(2)
    assert.is_false(channel:is_closed())
    channel:close()
    assert.is_true(channel:is_closed())
    assert.equal(1, channel:receive())
    assert.equal(2, channel:receive())
    assert.same({ nil, "closed", n = 2 }, table.pack(channel:receive()))
    assert.same({ nil, "closed", n = 2 }, table.pack(channel:receive(0)))
  end))

  it("tells those who wait to receive", simulated(function()
    local channel = opero.channel(0)
    local tasks = {}
    for i = 1, 3 do
      tasks[i] = opero.spawn(channel.receive, channel)
    end
    opero.yield()
    channel:close()
    for i = 1, 3 do
      assert.same({ nil, "closed", n = 2 }, table.pack(tasks[i]:await()))
    end
  end))

  it("ends loops over it", simulated(function()
    local channel, count = opero.channel(0), 0
    local task = opero.spawn(function()
      for _ in channel:iter() do
        count = count + 1
      end
      return "over"
    end)
    channel:send(1)
    channel:send(2)
    opero.yield()
    channel:close()
    assert.equal("over", task:await())
    assert.equal(2, count)
  end))

  it("raises ClosedError in those who send, or wait to", simulated(function()
    local channel = opero.channel(1)
    channel:send("in time")
    local task = opero.spawn(function() return pcall(channel.send, channel, "too late") end)
    opero.yield()
    channel:close()
    local ok, err = task:await()
    assert.is_false(ok)
    assert.is_true(opero.errors.is(err, opero.errors.ClosedError))
    raised_class("ClosedError", channel.send, channel, "much too late")
    assert.same({ "in time" }, drain(channel))
  end))

  it("can be called again", simulated(function()
    local channel = opero.channel(0)
    channel:close()
    channel:close()
    assert.is_true(channel:is_closed())
  end))
end)

describe("a channel one of whose receivers is cancelled", function()
  it("hands its messages to the others", simulated(function()
    for _, capacity in ipairs { 0, 2 } do
      local channel, received, tasks = opero.channel(capacity), {}, {}
      for i = 1, 5 do
        tasks[i] = receiver(channel, received, i)
      end
      opero.yield()
      tasks[1]:cancel()
      tasks[4]:cancel()
      for i = 1, 3 do
        channel:send(i)
      end
      opero.yield()
      assert.same({ [2] = 1, [3] = 2, [5] = 3 }, received)
    end
  end))

  it("in the turn in which it was handed one, gives that to the next", simulated(function()
    for _, capacity in ipairs { 0, 2 } do
      local channel, received, tasks = opero.channel(capacity), {}, {}
      for i = 1, 2 do
        tasks[i] = receiver(channel, received, i)
      end
      opero.yield()
      channel:send("message")
      tasks[1]:cancel()
      opero.yield()
      assert.same({ [2] = "message" }, received)
      assert.equal("cancelled", tasks[1]:status())
    end
  end))

  it("in that turn, with nobody next, keeps the message", simulated(function()
    for _, capacity in ipairs { 0, 1, 2 } do
      local channel = opero.channel(capacity)
      local task = opero.spawn(channel.receive, channel)
      opero.yield()
      channel:send("message")
      task:cancel()
      raised_class("CancelledError", task.await, task)
      assert.equal(1, #channel)
      assert.equal("message", channel:receive(0))
      raised_class("TimeoutError", channel.receive, channel, 0)
    end
  end))

  it("in that turn, keeps the order of the messages", simulated(function()
    local orders = { { 1, 2, 3 }, { 3, 2, 1 }, { 2, 1, 3 }, { 2, 3, 1 }, { 1, 3 }, { 3, 1 }, { 2 } }
    for _, capacity in ipairs { 0, 1, 10 } do
      for _, order in ipairs(orders) do
        local channel, received, tasks = opero.channel(capacity), {}, {}
        for i = 1, 3 do
          tasks[i] = receiver(channel, received, i)
        end
        opero.yield()
        for i = 1, 3 do
          channel:send(i)
        end
        for _, i in ipairs(order) do
          tasks[i]:cancel()
        end
        opero.yield()
        table.sort(order)
        assert.same(order, drain(channel))
        for i = 1, 3 do
          assert.equal(tasks[i]:status() == "done" and i or nil, received[i])
        end
      end
    end
  end))

  it("in that turn, with a message before it, gives out that one first", simulated(function()
    local channel = opero.channel(0)
    local first = opero.spawn(channel.receive, channel)
    local second = opero.spawn(channel.receive, channel)
    opero.yield()
    channel:send(1)
    channel:send(2)
    second:cancel()
    first:cancel()
    opero.yield()
    opero.spawn(channel.send, channel, 3)
    opero.yield()
    assert.same({ 1, 2, 3 }, { channel:receive(0), channel:receive(0), channel:receive(0) })
  end))

  it("in that turn, closed as well, loses no message", simulated(function()
    local channel = opero.channel(0)
    local first = opero.spawn(channel.receive, channel)
    local second = opero.spawn(channel.receive, channel)
    opero.yield()
    channel:send("message")
    channel:close()
    first:cancel()
    -- The channel is closed but not drained.
    assert.equal("message", second:await())
    assert.same({ nil, "closed" }, { channel:receive() })
  end))

  it("a hundred thousand at once, is as if they had never been", simulated(function()
    local channel = opero.channel(0)
    opero.scope(function(s)
      for _ = 1, 100000 do
        s:spawn(channel.receive, channel)
      end
      opero.yield()
      s:cancel()
    end)
    raised_class("TimeoutError", channel.send, channel, "message", 0)
    opero.spawn(channel.send, channel, "message")
    assert.equal("message", channel:receive())
  end))
end)

describe("a channel one of whose senders is cancelled", function()
  it("never gives out its message", simulated(function()
    for _, capacity in ipairs { 0, 1 } do
      local channel, tasks = opero.channel(capacity), {}
      for _ = 1, capacity do
        channel:send("filling")
      end
      for i = 1, 4 do
        tasks[i] = opero.spawn(channel.send, channel, i)
      end
      opero.yield()
      tasks[1]:cancel()
      tasks[3]:cancel()
      for _ = 1, capacity do
        assert.equal("filling", channel:receive())
      end
      assert.equal(2, channel:receive())
      assert.equal(4, channel:receive())
      raised_class("TimeoutError", channel.receive, channel, 0)
      assert.equal("cancelled", tasks[1]:status())
    end
  end))

  it("in the turn in which its message was taken, lets it know that it was", simulated(function()
    for _, capacity in ipairs { 0, 1 } do
      local channel, sent = opero.channel(capacity), nil
      for _ = 1, capacity do
        channel:send("filling")
      end
      local task = opero.spawn(function()
        sent = channel:send("message")
        opero.yield()
        sent = "too far"
      end)
      opero.yield()
      for _ = 1, capacity do
        assert.equal("filling", channel:receive())
      end
      if capacity == 0 then
        assert.equal("message", channel:receive())
      end
      assert.is_true(task:cancel())
      -- The message cannot come back, so the send has succeeded; what follows is cancelled.
      raised_class("CancelledError", task.await, task)
      assert.is_true(sent)
      if capacity == 1 then
        assert.equal("message", channel:receive(0))
      end
      raised_class("TimeoutError", channel.receive, channel, 0)
    end
  end))

  it("and then sends again, sends the new message", simulated(function()
    local channel = opero.channel(0)
    local task = opero.spawn(function()
      pcall(channel.send, channel, "old")
      opero.shield(channel.send, channel, "new")
    end)
    opero.yield()
    task:cancel()
    assert.equal("new", channel:receive())
    raised_class("CancelledError", task.await, task)
    raised_class("TimeoutError", channel.receive, channel, 0)
  end))

  it("in the turn in which the channel was closed, is cancelled", simulated(function()
    local channel = opero.channel(0)
    local task = opero.spawn(channel.send, channel, "message")
    opero.yield()
    channel:close()
    task:cancel()
    raised_class("CancelledError", task.await, task)
    assert.same({ nil, "closed" }, { channel:receive() })
  end))
end)

describe("a channel", function()
  it("loses and doubles no message, whatever happens in whatever order", function()
    for seed = 1, 200 do
      opero.simulate(function()
        local channel = opero.channel(seed % 4)
        local sent, received, tasks = {}, {}, {}
        for i = 1, 10 do
          tasks[#tasks + 1] = opero.spawn(function()
            opero.sleep(i % 3)
            if channel:send(i) then
              sent[i] = true
            end
          end)
          tasks[#tasks + 1] = opero.spawn(function()
            opero.sleep(i % 2)
            local message = channel:receive(i % 4 == 0 and 2 or nil)
            assert.is_nil(received[message])
            received[message] = true
          end)
        end
        for i = 1, #tasks, 3 do
          opero.spawn(function()
            opero.sleep(i % 3)
            tasks[i]:cancel()
          end)
        end
        opero.sleep(5)
        for _, task in ipairs(tasks) do
          task:cancel()
          pcall(task.await, task)
        end
        for _, message in ipairs(drain(channel)) do
          assert.is_nil(received[message])
          received[message] = true
        end
        -- A message whose send was cut short may not arrive; what was sent has arrived, once.
        assert.same(sent, received)
      end, { seed = seed })
    end
  end)
end)
