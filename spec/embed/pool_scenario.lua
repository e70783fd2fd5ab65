-- What pools do, for the host (memory.c) to refuse it memory at another place each time; in workers
-- too, which are forked with what the host has in mind. See scenario.lua for how the two work
-- together.

local core, host = ...

local function describe(e)
  return e.name .. ": " .. tostring(e.message)
end

local Cancelled = { __name = "CancelledError", __tostring = describe }
local Failed = { __name = "Error", __tostring = describe }

core.set_error_factory(function(name, message)
  return setmetatable({ name = name, message = message },
    name == "CancelledError" and Cancelled or Failed)
end)

core.logger("opero"):set_level("off") -- workers that crash are no news here

local function expect(ok, what)
  if not ok then
    error("expected: " .. what, 2)
  end
end

local sections = {}

-- A worker that has no memory left, not even to say so, ends, and its task with it.
local function section(fn)
  sections[#sections + 1] = function()
    local ok, err = pcall(core.run, fn)
    if not ok and type(err) == "table" and err.name == "WorkerCrashedError" then
      error("not enough memory in a worker: " .. err.message, 0)
    elseif not ok then
      error(err, 0)
    end
  end
end

local function new_pool(options)
  options.backend, options.cancel = "fork", options.cancel or "kill"
  return core.pool(options)
end

local function double(x)
  return x * 2
end

section(function() -- calls
  local pool <close> = new_pool { max_workers = 1 }
  expect(pool:call(double, 21) == 42, "a result")
  local task = pool:submit(function(t) return { t[1], t } end, { "a", {} })
  expect(#task:await() == 2, "a table")
  local ok, err = pcall(pool.call, pool, error, "bad luck")
  if ok or err ~= "bad luck" then
    error(err, 0)
  end
  expect(pool:stats().completed == 3, "three that came back")
end)

section(function() -- chunks
  local pool <close> = new_pool { max_workers = 2 }
  local items, results, failures = {}, {}, {}
  for i = 1, 60 do
    items[i] = i % 20 == 0 and { i } or i
  end
  local function run(first, last)
    while first <= last do
      first = pool:_chunk(function(x) return x ~= 7 and { x } or nil, "seven" end, items, first,
        last, results, failures)
    end
  end
  local other = core.spawn(run, 31, 60)
  run(1, 30)
  other:await()
  for i = 1, 60 do
    expect(results[i] or failures[i], "an outcome of each")
  end
end)

section(function() -- workers that die, and tasks that are taken back
  local pool <close> = new_pool { max_workers = 2, task_timeout = 5, idle_timeout = 5 }
  local crash = pool:submit(host.exit)
  local behind = pool:submit(double, 4)
  local taken = pool:submit(double, 5)
  core.yield()
  taken:cancel()
  local ok, err = pcall(crash.await, crash)
  if ok or err.name ~= "WorkerCrashedError" then
    error(err, 0)
  end
  expect(behind:await() == 8, "the one behind it")
end)

sections[#sections + 1] = function() -- what is left to the end
  local closing = setmetatable({}, { __close = function() host.closed() end })
  sections.pool = new_pool { max_workers = 1 }
  core.spawn(function() pcall(sections.pool.call, sections.pool, core.sleep, 1000) end)
  for _ = 1, 3 do
    core.spawn(function() local _ <close> = closing core.sleep(1000) end)
  end
  core.step()
  core.step()
end

return sections
