-- Loggers and their levels: which records go anywhere.

local log_support = require "spec.logging.support"
local opero = require "opero"
local runtime_support = require "spec.runtime.support"
local support = require "spec.support"

local output_of = runtime_support.output_of
local messages = log_support.messages
local raised, refused = support.raised, support.refused

local LEVELS <const> = { "debug", "info", "warning", "error", "critical" }

-- What a logger does not know is refused in these words.
local LEVEL_EXPECTED <const> =
  'expected one of "debug", "info", "warning", "error", "critical", "off", got '
local NAME_EXPECTED <const> = "expected a name, or names with dots between them, "
  .. "of 1000 bytes at most, got "

-- A value that counts how often somebody wants to see it.
local function watched()
  local seen = { count = 0 }
  return setmetatable({}, {
    __tostring = function()
      seen.count = seen.count + 1
      return "watched"
    end,
  }), seen
end

describe("loggers", function()
  local records
  local count = 0

  -- The name of a logger that there is not yet: one that was made stays, and so does its level.
  local function new_name()
    count = count + 1
    return "levels_spec.n" .. count
  end

  before_each(function()
    records = log_support.record { level = "info" }
  end)

  after_each(function()
    log_support.restore()
    for i = 1, count do
      opero.get_logger("levels_spec.n" .. i):set_level()
    end
  end)

  -- The levels at which the logger lets records through: by the method of the level, by `log`, and
  -- as `enabled` says. These must agree.
  local function open_levels(log)
    local open = {}
    for _, level in ipairs(LEVELS) do
      local before = #records
      log[level](log, level)
      local by_method = #records - before
      log:log(level, level)
      local by_log = #records - before - by_method
      assert.equal(by_method, by_log)
      assert.equal(by_method == 1, log:enabled(level))
      if by_method > 0 then
        assert.equal(level, records[#records].level)
        assert.equal(level, records[#records].message)
        open[#open + 1] = level
      end
    end
    assert.is_false(log:enabled("off"))
    return table.concat(open, " ")
  end

  describe("have levels:", function()
    local open_at <const> = {
      debug = "debug info warning error critical",
      info = "info warning error critical",
      warning = "warning error critical",
      error = "error critical",
      critical = "critical",
      off = "",
    }

    for level, open in pairs(open_at) do
      it(("%s lets through what is not below it"):format(level), function()
        local log = opero.get_logger(new_name(), { level = level })
        assert.equal(level, log:level())
        assert.equal(open, open_levels(log))
      end)

      it(("%s of the root is that of all without one"):format(level), function()
        local log = opero.get_logger(new_name())
        opero.configure_logging { level = level, output = function() end }
        records = log_support.record()
        assert.equal(level, log:level())
        assert.equal(level, opero.get_logger():level())
        assert.equal(open, open_levels(log))
        assert.equal(open, open_levels(opero.get_logger()))
      end)
    end

    it("a record at the level off is none", function()
      local log = opero.get_logger(new_name(), { level = "debug" })
      log:log("off", "never")
      assert.same({}, records)
    end)

    it("a record has the name of its logger", function()
      local name = new_name()
      opero.get_logger(name):info("a")
      opero.ContextAdapter(opero.get_logger(name .. ".sub")):info("b")
      opero.get_logger():info("c")
      assert.equal(name, records[1].logger)
      assert.equal(name .. ".sub", records[2].logger)
      assert.equal("root", records[3].logger)
    end)
  end)

  describe("form a tree by their names:", function()
    it("without a level one has that of the nearest above it that has one", function()
      local name = new_name()
      local deep = opero.get_logger(name .. ".a.b.c.d")
      assert.equal("info", deep:level())
      opero.get_logger(name):set_level("error")
      assert.equal("error", deep:level())
      opero.get_logger(name .. ".a.b"):set_level("debug")
      assert.equal("debug", deep:level())
      assert.equal("error", opero.get_logger(name .. ".a"):level())
      assert.equal("error", opero.get_logger(name .. ".other"):level())
      deep:set_level("off")
      assert.equal("off", deep:level())
      assert.equal("debug", opero.get_logger(name .. ".a.b.c"):level())
    end)

    it("a part of a name is one only up to a dot", function()
      local name = new_name()
      opero.get_logger(name, { level = "error" })
      assert.equal("error", opero.get_logger(name .. ".x"):level())
      assert.equal("info", opero.get_logger(name .. "x"):level())
      assert.equal("info", opero.get_logger(name .. "-x"):level())
    end)

    it("the order in which they are made does not matter", function()
      for _, order in ipairs {
        { "", ".a", ".a.b" }, { ".a.b", ".a", "" }, { ".a", "", ".a.b" }, { ".a.b", "", ".a" },
      } do
        local name = new_name()
        for _, rest in ipairs(order) do
          opero.get_logger(name .. rest)
        end
        opero.get_logger(name):set_level("critical")
        assert.equal("critical", opero.get_logger(name .. ".a.b"):level())
        opero.get_logger(name .. ".a"):set_level("warning")
        assert.equal("warning", opero.get_logger(name .. ".a.b"):level())
        assert.equal("critical", opero.get_logger(name):level())
      end
    end)

    it("one called root is none but by its name", function()
      local root, namesake = opero.get_logger(), opero.get_logger("root")
      namesake:set_level("critical")
      finally(function() namesake:set_level() end)
      assert.equal("root", root:name())
      assert.equal("root", namesake:name())
      assert.equal("info", root:level())
      assert.equal("critical", opero.get_logger("root.x"):level())
    end)

    it("names may hold any character but controls", function()
      for _, part in ipairs { "a b", "ü", "%d", "-", "\xff", ("x"):rep(500) } do
        local name = new_name() .. "." .. part
        local log = opero.get_logger(name, { level = "error" })
        assert.equal(name, log:name())
        assert.equal("error", opero.get_logger(name .. ".below"):level())
      end
    end)
  end)

  describe("are one to a name:", function()
    it("what is set for one counts wherever it is asked for", function()
      local name = new_name()
      local first, second = opero.get_logger(name), opero.get_logger(name)
      first:set_level("error")
      assert.equal("error", second:level())
      assert.equal("error", opero.get_logger(name):level())
      assert.equal(name, second:name())
    end)

    it("it is the same value each time, the root too", function()
      local name = new_name()
      assert.equal(opero.get_logger(name), opero.get_logger(name))
      assert.equal(opero.get_logger(), opero.get_logger(nil))
      assert.equal(opero.get_logger(),
        opero.configure_logging { output = function() end })
      assert.not_equal(opero.get_logger(name), opero.get_logger(name .. ".x"))
    end)

    it("one that nobody holds keeps its level", function()
      local name = new_name()
      opero.get_logger(name, { level = "error" })
      collectgarbage()
      collectgarbage()
      assert.equal("error", opero.get_logger(name):level())
      assert.equal("error", opero.get_logger(name, {}):level())
    end)

    it("a ContextAdapter is another face of it", function()
      local log = opero.get_logger(new_name())
      local adapter = opero.ContextAdapter(log, { a = 1 })
      adapter:set_level("error")
      assert.equal("error", log:level())
      log:set_level("debug")
      assert.equal("debug", adapter:level())
      assert.is_true(adapter:enabled("debug"))
      assert.equal(log:name(), adapter:name())
    end)

    it("tostring shows its name", function()
      local log = opero.get_logger(new_name())
      assert.equal("opero.Logger: " .. log:name(), tostring(log))
      assert.equal("opero.Logger: root", tostring(opero.get_logger()))
    end)
  end)

  describe("change their levels at any time:", function()
    it("for loggers in use, and those below them", function()
      local name = new_name()
      local log, child = opero.get_logger(name), opero.get_logger(name .. ".child")
      local adapter = opero.ContextAdapter(child)
      local function all()
        log:debug("log")
        child:debug("child")
        adapter:debug("adapter")
      end
      all()
      log:set_level("debug")
      all()
      log:set_level("info")
      all()
      child:set_level("debug")
      all()
      assert.same({ "log", "child", "adapter", "child", "adapter" }, messages(records))
    end)

    it("set_level without a level inherits again, and returns the logger", function()
      local name = new_name()
      local log, child = opero.get_logger(name), opero.get_logger(name .. ".child")
      assert.equal(log, log:set_level("error"))
      child:set_level("debug")
      assert.equal("debug", child:level())
      assert.equal(child, child:set_level(nil))
      assert.equal("error", child:level())
      assert.equal("info", log:set_level():level())
      assert.equal("info", child:level())
    end)

    it("set_level of the root is that of configure_logging", function()
      local log = opero.get_logger(new_name())
      opero.get_logger():set_level("critical")
      assert.equal("critical", log:level())
      opero.get_logger(nil, { level = "debug" })
      assert.equal("debug", log:level())
    end)

    it("get_logger takes a level, and without one leaves it", function()
      local name = new_name()
      assert.equal("error", opero.get_logger(name, { level = "error" }):level())
      assert.equal("error", opero.get_logger(name):level())
      assert.equal("error", opero.get_logger(name, {}):level())
      assert.equal("off", opero.get_logger(name, { level = "off" }):level())
    end)

    it("in the midst of a call: an argument's __tostring may do so", function()
      local log = opero.get_logger(new_name())
      log:info("%s", setmetatable({}, {
        __tostring = function()
          log:set_level("off")
          return "the last"
        end,
      }))
      log:critical("never")
      assert.same({ "the last" }, messages(records))
    end)
  end)

  describe("are configured:", function()
    it("level is the root's, levels are of those named, whether they exist or not", function()
      local there, later = new_name(), new_name()
      local log = opero.get_logger(there)
      records = log_support.record {
        level = "error",
        levels = { [there] = "debug", [there .. ".quiet"] = "off", [later] = "warning" },
      }
      assert.equal("error", opero.get_logger(new_name()):level())
      assert.equal("debug", log:level())
      assert.equal("off", opero.get_logger(there .. ".quiet"):level())
      assert.equal("debug", opero.get_logger(there .. ".loud"):level())
      assert.equal("warning", opero.get_logger(later .. ".a.b"):level())
    end)

    it("levels stay until they are set again", function()
      local name = new_name()
      records = log_support.record { level = "error", levels = { [name] = "debug" } }
      records = log_support.record()
      assert.equal("error", opero.get_logger():level())
      assert.equal("debug", opero.get_logger(name):level())
      records = log_support.record { levels = { [name] = "critical" } }
      assert.equal("error", opero.get_logger():level())
      assert.equal("critical", opero.get_logger(name):level())
    end)

    it("without a level the root has info, and opero warning until one is set", function()
      assert.equal([[
info	info	warning	warning
debug	debug	debug	debug
info	info	warning	warning
info	info	error	error
info	error	error	error
info	info	warning	warning
]], output_of [[
        local opero = require "opero"
        local root, app = opero.get_logger(), opero.get_logger "app"
        local own = opero.get_logger "opero"
        local function show()
          print(root:level(), app:level(), own:level(), opero.get_logger("opero.x"):level())
        end
        show()
        root:set_level "debug"
        show()
        root:set_level()
        show()
        own:set_level "error"
        show()
        app:set_level "error"
        show()
        own:set_level()
        app:set_level()
        show()
      ]])
    end)

    it("configuring without a level leaves these", function()
      assert.equal("info\twarning\nerror\terror\n", output_of [[
        local opero = require "opero"
        opero.configure_logging { output = "stdout", format = "plain" }
        print(opero.get_logger():level(), opero.get_logger("opero"):level())
        opero.configure_logging { level = "error" }
        print(opero.get_logger():level(), opero.get_logger("opero"):level())
      ]])
    end)
  end)

  describe("go by what the outputs take:", function()
    local function configure(...)
      local sinks = {}
      for i, level in ipairs { ... } do
        sinks[i] = { level = level, output = function(line, record)
          record.line, record.sink = line, i
          records[#records + 1] = record
        end }
      end
      opero.configure_logging { level = "debug", sinks = sinks }
    end

    it("what goes nowhere is not enabled, whatever the logger's level", function()
      local log = opero.get_logger(new_name())
      configure("error", "warning")
      assert.equal("debug", log:level())
      assert.is_false(log:enabled("info"))
      assert.is_true(log:enabled("warning"))
      configure("critical")
      assert.is_false(log:enabled("error"))
      assert.is_true(log:enabled("critical"))
      configure("off")
      assert.is_false(log:enabled("critical"))
      configure()
      assert.is_false(log:enabled("critical"))
      configure("off", "debug")
      assert.is_true(log:enabled("debug"))
    end)

    it("each takes what is not below its level", function()
      local log = opero.get_logger(new_name())
      configure("debug", "off", "error")
      log:info("a")
      log:error("b")
      local got = {}
      for i, record in ipairs(records) do
        got[i] = record.sink .. record.message
      end
      assert.same({ "1a", "1b", "3b" }, got)
    end)

    it("the logger's level counts as well", function()
      local log = opero.get_logger(new_name(), { level = "critical" })
      configure("debug")
      log:error("a")
      log:critical("b")
      assert.same({ "b" }, messages(records))
    end)

    it("a logger made afterwards does, too", function()
      configure("error")
      local log = opero.get_logger(new_name(), { level = "debug" })
      assert.is_false(log:enabled("warning"))
      assert.is_true(log:enabled("error"))
    end)
  end)

  describe("below their level", function()
    it("format nothing and look at no argument", function()
      local log = opero.get_logger(new_name(), { level = "error" })
      local value, seen = watched()
      for _, method in ipairs { "debug", "info", "warning" } do
        log[method](log, value)
        log[method](log, "%s", value)
        log[method](log, "%s %s %s", value, value)
        log[method](log, "fields", { value = value, list = { value } })
        log:log(method, "%s", value)
      end
      assert.equal(0, seen.count)
      assert.same({}, records)
      log:error("%s", value)
      assert.equal(1, seen.count)
    end)

    it("do so also when it is the outputs that take nothing", function()
      local log = opero.get_logger(new_name(), { level = "debug" })
      local value, seen = watched()
      opero.configure_logging { sinks = { { output = function() end, level = "error" } } }
      log:warning("%s", value, { value = value })
      opero.configure_logging { sinks = {} }
      log:critical("%s", value, { value = value })
      assert.equal(0, seen.count)
    end)

    it("make no garbage", function()
      local log = opero.get_logger(new_name())
      local function many()
        for i = 1, 1000 do
          log:debug("%d of %s", i, "many")
        end
      end
      collectgarbage()
      collectgarbage("stop")
      finally(function() collectgarbage("restart") end)
      many() -- the stack, which a collection makes small, grows again
      local before = collectgarbage("count")
      many()
      local after = collectgarbage("count")
      assert.equal(before, after)
    end)

    it("return nothing, nor do those that log", function()
      local log = opero.get_logger(new_name())
      assert.equal(0, select("#", log:debug("x")))
      assert.equal(0, select("#", log:info("x")))
      assert.equal(0, select("#", log:log("debug", "x")))
      assert.equal(0, select("#", log:log("info", "x")))
    end)
  end)

  describe("refuse", function()
    local bad_names <const> = {
      { "", '"" (a string)' }, { ".", '"." (a string)' }, { ".a", '".a" (a string)' },
      { "a.", '"a." (a string)' }, { "a..b", '"a..b" (a string)' },
      { "a\nb", '"a\\nb" (a string)' }, { "a\0b", '"a\\0b" (a string)' },
      { 5, "5" }, { true, "true (a boolean)" }, { false, "false (a boolean)" },
      { {}, "a table" },
    }

    it("names that are none", function()
      for _, case in ipairs(bad_names) do
        local err = refused(opero.get_logger, case[1])
        assert.equal("get_logger.name", err.path)
        assert.equal(case[1], err.value)
        assert.equal("get_logger.name: " .. NAME_EXPECTED .. case[2], err.message)
      end
    end)

    it("names that are none in levels, and say which", function()
      for _, case in ipairs(bad_names) do
        local err = refused(opero.configure_logging, { levels = { [case[1]] = "info" } })
        assert.equal("configure_logging.levels: " .. NAME_EXPECTED .. case[2], err.message)
        assert.equal(case[1], err.value)
      end
    end)

    local bad_levels <const> = {
      { "loud", '"loud" (a string)' }, { "INFO", '"INFO" (a string)' },
      { "warn", '"warn" (a string)' }, { "", '"" (a string)' },
      { "info\0x", '"info\\0x" (a string)' }, { 1, "1" }, { true, "true (a boolean)" },
      { {}, "a table" },
    }

    it("levels that are none, as options", function()
      local name = new_name()
      local log = opero.get_logger(name, { level = "error" })
      for _, case in ipairs(bad_levels) do
        local level, shown = case[1], case[2]
        for path, fn in pairs {
          ["get_logger.level"] = function() opero.get_logger(name, { level = level }) end,
          ["configure_logging.level"] = function()
            opero.configure_logging { level = level }
          end,
          ["configure_logging.levels.app"] = function()
            opero.configure_logging { level = "debug", levels = { app = level } }
          end,
          ["configure_logging.levels[\"app.db\"]"] = function()
            opero.configure_logging { levels = { [name] = "debug", ["app.db"] = level } }
          end,
          ["configure_logging.sinks[2].level"] = function()
            opero.configure_logging { level = "debug", sinks = {
              { output = "stderr" }, { output = "stderr", level = level },
            } }
          end,
        } do
          local err = refused(fn)
          assert.equal(path, err.path)
          assert.equal(level, err.value)
          assert.equal(path .. ": " .. LEVEL_EXPECTED .. shown, err.message)
        end
      end
      assert.equal("error", log:level())
      assert.equal("info", opero.get_logger():level())
      log:error("still here")
      assert.same({ "still here" }, messages(records))
    end)

    it("levels that are none, as arguments of methods", function()
      local log = opero.get_logger(new_name(), { level = "error" })
      for _, case in ipairs(bad_levels) do
        for _, method in ipairs { "set_level", "enabled", "log" } do
          local message = tostring(raised(log[method], log, case[1], "message"))
          assert.matches("expected a level", message, 1, true)
          assert.matches("got " .. tostring(case[1]):match("^[^%z:]*"), message, 1, true)
        end
      end
      assert.equal("error", log:level())
      assert.same({}, records)
    end)

    it("calls of these methods without a level", function()
      local log = opero.get_logger(new_name())
      for _, method in ipairs { "enabled", "log" } do
        local message = tostring(raised(log[method], log))
        assert.matches("expected a level", message, 1, true)
        assert.matches("got no value$", message)
      end
    end)

    it("an error of an argument says where it was called", function()
      local log = opero.get_logger(new_name())
      local err = raised(function() log:log("loud", "x") end)
      assert.matches("levels_spec%.lua:%d+: ", err)
    end)

    it("options that are none", function()
      assert.equal("get_logger: expected a table of options, got 5",
        refused(opero.get_logger, "x", 5).message)
      assert.equal('get_logger.levl: unknown option; did you mean "level"?',
        refused(opero.get_logger, "x", { levl = "info" }).message)
      assert.equal("configure_logging.levels: expected a table of levels by the names of loggers, "
        .. 'got "info" (a string)', refused(opero.configure_logging, { levels = "info" }).message)
    end)

    it("what is no logger", function()
      local log = opero.get_logger(new_name())
      for _, other in ipairs { 5, "x", true, {}, io.stdout, opero.event() } do
        assert.matches("ContextAdapter%.logger: expected a logger, of get_logger or "
          .. "ContextAdapter, got ", refused(opero.ContextAdapter, other).message)
        assert.matches("log_context%.logger: expected a logger, of get_logger or "
          .. "ContextAdapter, got ", refused(opero.log_context, other, {}).message)
        for _, method in ipairs {
          "info", "log", "enabled", "level", "set_level", "name",
        } do
          assert.matches("opero.Logger expected, got", raised(log[method], other, "info", "x"), 1,
            true)
        end
      end
      assert.equal("ContextAdapter.logger", refused(opero.ContextAdapter).path)
      assert.matches("opero.Logger expected, got no value", raised(log.info), 1, true)
    end)
  end)
end)
