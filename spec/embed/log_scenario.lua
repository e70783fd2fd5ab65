-- What logging does, for the host (memory.c) to refuse it memory at another place each time. See
-- scenario.lua for how the two work together. Calls that log raise nothing: what they cannot say is
-- lost, and the next record is none the worse.

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

local function expect(ok, what)
  if not ok then
    error("expected: " .. what, 2)
  end
end

local sections = {}
local lines, records = {}, {}

local function configure()
  lines, records = {}, {}
  core.log_configure({
    { path = "/dev/null", level = "debug", format = "json" },
    { path = "/dev/full", level = "debug", format = "logfmt" },
    { fn = function(line, record)
      lines[#lines + 1] = line
      records[#records + 1] = record
    end, level = "debug", format = "text" },
    { fn = function() error "this one always fails" end, level = "error", format = "plain" },
  }, { "password", "token" })
end

local odd = setmetatable({}, { __tostring = function() return "odd" end })

sections[#sections + 1] = function() -- records
  configure()
  local log = core.logger("a.b.c")
  log:set_level("debug")
  local adapter = core.adapter(core.adapter(log, { component = "x" }), { part = { 1, 2 } })
  local said = #lines
  log:info("plain")
  adapter:warning("%5d %s %s", 3, odd, { 1, { a = "b" } }, {
    url = "x", password = "y", deep = { token = 1, more = { 1, 2, 3 } }, odd = odd, z = 1.5,
  })
  log:error(odd)
  expect(#lines <= said + 8, "no more than what was said")
  expect(core.log_reopen(), "a list")
end

sections[#sections + 1] = function() -- contexts
  configure()
  local log = core.logger("a")
  core.run(function()
    core.add_context { request = 1, user = { name = "ann" } }
    local _ <close> = core.push_context { batch = 7, request = 2 }
    local children = {}
    for i = 1, 3 do
      children[i] = core.spawn(function()
        core.add_context { child = i }
        core.yield()
        log:info("child", { i = i })
      end)
    end
    core.add_context { late = true }
    for i = 1, 3 do
      children[i]:await()
    end
    core.remove_context("late", "nothing")
    local generator = core.wrap(function()
      core.add_context { within = "generator" }
      coroutine.yield(1)
      log:info("in it")
    end)
    generator()
    generator()
    expect(type(core.get_context()) == "table", "a table")
  end)
end

sections[#sections + 1] = function() -- executions
  local layer = core.execution(core.invoke, core.meter())
  core.run(function()
    for i = 1, 3 do
      local ok, id = layer(function()
        core.add_context { n = i }
        core.yield()
        return core.correlation_id()
      end)
      if not ok then
        error(id, 0)
      end
    end
  end)
end

sections[#sections + 1] = function() -- workers
  configure()
  local ok, err = pcall(core.run, function()
    local pool <close> = core.pool { max_workers = 1, backend = "fork", cancel = "kill" }
    core.add_context { batch = 7 }
    pool:call(function(log)
      log = core.logger(log)
      log:info("in a worker", { n = 1 })
      log:error("again")
    end, "a.w")
    core.logger("a"):set_level("warning")
    local crash = pool:submit(function()
      core.logger("a"):error("last words")
      host.exit()
    end)
    pcall(crash.await, crash)
  end)
  if not ok and type(err) == "table" and err.name == "WorkerCrashedError" then
    error("not enough memory in a worker: " .. err.message, 0)
  elseif not ok then
    error(err, 0)
  end
end

sections[#sections + 1] = function() -- what is left to the end
  local closing = setmetatable({}, { __close = function() host.closed() end })
  core.add_context { outside = true }
  sections.scope = core.push_context { open = true }
  for i = 1, 3 do
    core.spawn(function()
      core.add_context { i = i }
      local _ <close> = closing
      core.sleep(1000)
    end)
  end
  core.step()
  core.step()
end

return sections
