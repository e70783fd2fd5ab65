-- Random programs: trees of tasks that do anything the runtime offers, to each other too. Whatever
-- happens, each task ends, every <close> runs, no permit and no message is lost or doubled, and
-- the same seed gives the same run.

local opero = require "opero"
local support = require "spec.runtime.support"

local PERMITS <const> = 3
local MAX_DEPTH <const> = 8

-- A generator of its own: math.random is anybody's.
local function dice(seed)
  local state = seed
  return function(sides)
    state = (state * 1103515245 + 12345) & 0x7fffffff
    return (state >> 8) % sides + 1
  end
end

local function run_random_program(seed, acts_left)
  local random = dice(seed)
  local opened, closed, trace = 0, 0, {}
  local tasks, scopes, resumes = {}, {}, {}
  local sent, received = {}, {}

  local function program()
    local semaphore, event = opero.semaphore(PERMITS), opero.event()
    local channels = { opero.channel(0), opero.channel(1), opero.channel(3), opero.channel(1e9) }
    local act, body

    local function some(list)
      return list[random(math.max(#list, 1))]
    end

    local function remember(task)
      tasks[#tasks + 1] = task
      return task
    end

    local function brief()
      return random(5) / 2
    end

    local acts = {
      function() opero.sleep(brief()) end,
      function() opero.yield() end,
      function(depth) remember(opero.spawn(body, depth + 1)) end,
      function(depth) opero.run(body, depth + 1) end,
      function() some(tasks):cancel() end,
      function() opero.current():cancel() end,
      function() some(tasks):await(brief()) end,
      function(depth)
        opero.scope(function(s)
          scopes[#scopes + 1] = s
          for _ = 1, random(3) do
            remember(s:spawn(body, depth + 1))
          end
          act(depth + 1)
        end)
      end,
      function() some(scopes):cancel() end,
      function(depth) remember(some(scopes):spawn(body, depth + 1)) end,
      function(depth) opero.timeout(brief(), body, depth + 1) end,
      function(depth) opero.shield(act, depth + 1) end,
      function()
        semaphore:acquire(brief())
        local _ <close> = support.closing(function() semaphore:release() end)
        opero.sleep(brief())
      end,
      function()
        local message = opened * 1000 + #trace
        if some(channels):send(message, brief()) then
          sent[message] = true
        end
      end,
      function()
        local message = some(channels):receive(brief())
        assert(not received[message], "a message came twice")
        received[message] = true
      end,
      function() event:wait(brief()) end,
      function() event:set() end,
      function() event:clear() end,
      function() error { "an error of the program" } end,
      function()
        opero.timeout(brief(), opero.await, function(resume) resumes[#resumes + 1] = resume end)
      end,
      function() some(resumes)(1, 2, 3) end,
      function(depth)
        local generate = opero.wrap(function()
          for i = 1, 3 do
            act(depth + 1)
            coroutine.yield(i)
          end
        end)
        for _ = 1, random(3) do
          generate()
        end
      end,
      function(depth)
        local _ <close> = support.closing(function() act(depth + 1) end)
        act(depth + 1)
      end,
      function() collectgarbage("step", 10) end,
    }

    function act(depth)
      if acts_left > 0 and depth < MAX_DEPTH then
        acts_left = acts_left - 1
        local number = random(#acts)
        trace[#trace + 1] = ("%d at %g"):format(number, opero.now())
        acts[number](depth)
      end
    end

    function body(depth)
      opened = opened + 1
      local _ <close> = support.closing(function()
        closed = closed + 1
        if random(8) == 1 then
          act(depth + 1)
        end
      end)
      for _ = 1, random(6) do
        if random(3) == 1 then
          act(depth)
        else
          pcall(act, depth)
        end
      end
    end

    local top = opero.spawn(function()
      for _ = 1, 20 do
        remember(opero.spawn(body, 1))
      end
    end)
    pcall(top.await, top)

    for _, task in ipairs(tasks) do
      assert.is_true(task:status() ~= "suspended" and task:status() ~= "ready")
    end
    assert.equal(opened, closed)
    assert.equal(PERMITS, semaphore:available())
    assert.equal(0, semaphore:waiting())
    for _, channel in ipairs(channels) do
      channel:close()
      for message in channel:iter() do
        assert.is_nil(received[message])
        received[message] = true
      end
    end
    for message in pairs(sent) do
      assert.is_true(received[message], "a message was lost")
    end
  end

  opero.simulate(program, { seed = seed })
  assert.same({}, opero.tasks())
  return table.concat(trace, "\n")
end

describe("random programs", function()
  local function run_seeds(first, last)
    for seed = first, last do
      local ok, err = pcall(run_random_program, seed, 400)
      if not ok then
        error(("seed %d: %s"):format(seed, tostring(err.message or err)), 0)
      end
    end
  end

  it("end in order", function()
    run_seeds(1, 300)
  end)

  it("end in order under an eager collector", function()
    local _ <close> = support.closing(function() collectgarbage("incremental", 200, 100) end)
    collectgarbage("incremental", 10, 1000)
    run_seeds(501, 505)
  end)

  it("end in order under a generational collector", function()
    local _ <close> = support.closing(function() collectgarbage("incremental") end)
    collectgarbage("generational", 1, 5)
    run_seeds(601, 640)
  end)

  it("are the same for the same seed", function()
    for seed = 1, 20 do
      assert.equal(run_random_program(seed, 400), run_random_program(seed, 400))
    end
  end)
end)
