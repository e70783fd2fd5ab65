-- The bridge to lualogging, each way: with a logger that has no more than its interface, and with
-- the real module where there is one.

local log_support = require "spec.logging.support"
local lualogging = require "opero.lualogging"
local opero = require "opero"
local support = require "spec.support"

local messages = log_support.messages
local raised, refused = support.raised, support.refused

-- What Debian has of it is for other versions of Lua, but works.
local DEBIAN <const> = "/usr/share/lua/5.2/?.lua"

-- The levels of both, lowest first.
local LEVELS <const> = {
  { "debug", "DEBUG" }, { "info", "INFO" }, { "warning", "WARN" }, { "error", "ERROR" },
  { "critical", "FATAL" },
}

-- As logging.new: a logger that gives append(logger, level, message) what is not below its level.
local function fake(append)
  local logger = { level = "DEBUG" }
  local order = {}
  for i, level in ipairs(LEVELS) do
    order[level[2]] = i
  end

  function logger:setLevel(level)
    self.level = level
  end

  function logger:log(level, message, ...)
    if order[level] < order[self.level] then
      return nil
    elseif select("#", ...) > 0 then
      message = message:format(...)
    end
    return append(self, level, message)
  end

  return logger
end

-- The real module `name`, and what undoes that it was loaded; nil where it is not installed.
local function real(name)
  local loaded, path, global = {}, package.path, rawget(_G, "logging")
  for key, value in pairs(package.loaded) do
    loaded[key] = value
  end
  if not package.searchpath("logging", path) then
    package.path = path .. ";" .. DEBIAN
  end
  local ok, module = pcall(require, name)
  package.path = path
  for key in pairs(package.loaded) do
    if loaded[key] == nil then
      package.loaded[key] = nil
    end
  end
  rawset(_G, "logging", global) -- where it puts itself
  return ok and module or nil
end

local implementations <const> = {
  { name = "a logger with lualogging's interface", new = fake },
  { name = "a logger of the real lualogging", new = (real "logging" or {}).new },
}

describe("lualogging", function()
  local log

  before_each(function()
    log = opero.get_logger "app"
  end)

  after_each(function()
    log_support.restore()
    log:set_level()
  end)

  for _, implementation in ipairs(implementations) do
    describe("sink with " .. implementation.name, function()
      local appended

      -- A logger that keeps what it is to append.
      local function keeping()
        appended = {}
        return implementation.new(function(_, level, message)
          appended[#appended + 1] = { level, message }
          return true
        end)
      end

      local function configure(sinks)
        for i, sink in ipairs(sinks) do
          sinks[i] = type(sink) == "function" and { output = sink, format = "plain" } or sink
        end
        opero.configure_logging { level = "debug", sinks = sinks }
      end

      -- A spec that wants the module.
      local function spec(name, fn)
        it(name, function()
          if not implementation.new then
            pending("lualogging is not installed")
            return
          end
          fn()
        end)
      end

      spec("hands it lines with its own levels, without time and level", function()
        configure { lualogging.sink(keeping()) }
        for _, level in ipairs(LEVELS) do
          log:log(level[1], "fetched %d bytes", 3, { url = "/a b" })
        end
        local line = 'app: fetched 3 bytes  url="/a b"'
        assert.same({
          { "DEBUG", line }, { "INFO", line }, { "WARN", line }, { "ERROR", line },
          { "FATAL", line },
        }, appended)
      end)

      spec("hands them on as they are, whatever is in them", function()
        configure { lualogging.sink(keeping()) }
        log:info("100%% of %s", "%d %s %n")
        log:info("a\nb", { ["%s"] = "%d" })
        assert.same({
          { "INFO", "app: 100% of %d %s %n" }, { "INFO", "app: a\\nb  %s=%d" },
        }, appended)
      end)

      spec("has it decide which levels it takes: those it does not are no failure", function()
        local theirs = keeping()
        local lines = {}
        theirs:setLevel("ERROR")
        for i in ipairs(appended) do -- the real one tells of the change
          appended[i] = nil
        end
        configure { lualogging.sink(theirs), function(line) lines[#lines + 1] = line end }
        log:info "one"
        log:error "two"
        assert.same({ { "ERROR", "app: two" } }, appended)
        assert.same({ "app: one", "app: two" }, lines)
      end)

      spec("is a sink like any other, that may be given a level and a format", function()
        local sink = lualogging.sink(keeping())
        sink.level, sink.format = "error", "logfmt"
        configure { sink }
        log:info "one"
        log:error "two"
        assert.equal(1, #appended)
        assert.matches("^time=%S+ level=error logger=app msg=two$", appended[1][2])
        assert.is_false(log:enabled("warning"))
      end)

      spec("fails when its appender does: that is reported once", function()
        for _, fail in ipairs {
          function() return nil, "disk full" end,
          function() error("disk full", 0) end,
        } do
          local lines = {}
          local sink = lualogging.sink(implementation.new(fail))
          configure { sink, function(line) lines[#lines + 1] = line end }
          log:info "one"
          log:info "two"
          assert.same({
            'opero: a log output failed  error="disk full" output=function', "app: one", "app: two",
          }, lines)
        end
      end)

      spec("whose appender logs itself does not go round", function()
        local lines = {}
        configure {
          lualogging.sink(implementation.new(function(_, _, message)
            log:info("appended %s", message)
            return true
          end)),
          function(line) lines[#lines + 1] = line end,
        }
        log:info "one"
        assert.same({ "app: appended app: one", "app: one" }, lines)
      end)

      spec("does not see what is below the levels of Opero's loggers", function()
        configure { lualogging.sink(keeping()) }
        log:set_level("error")
        log:info "one"
        log:error "two"
        assert.same({ { "ERROR", "app: two" } }, appended)
      end)
    end)
  end

  it("sink works with the real appender that writes to files", function()
    local file_appender = real "logging.file"
    if not file_appender then
      pending("lualogging is not installed")
      return
    end
    local path = os.tmpname()
    finally(function() os.remove(path) end)
    opero.configure_logging { sinks = {
      lualogging.sink(file_appender(path, nil, "%level|%message\n")),
    } }
    log:info("fetched %d%%", 3, { url = "/a" })
    log:critical "two\nlines"
    local file <close> = assert(io.open(path))
    assert.equal("INFO|app: fetched 3%  url=/a\nFATAL|app: two\\nlines\n", file:read("a"))
  end)

  it("sink refuses what is no logger", function()
    for _, other in ipairs { 5, "x", {}, { log = 5 }, print, log } do
      local err = refused(lualogging.sink, other)
      assert.equal("lualogging.sink.logger", err.path)
      assert.matches("^lualogging%.sink%.logger: expected a logger of lualogging, got ",
        err.message)
    end
    assert.equal("lualogging.sink.logger: expected a logger of lualogging, got nil",
      refused(lualogging.sink).message)
  end)

  describe("logger", function()
    local records, theirs

    before_each(function()
      records = log_support.record { level = "debug" }
      theirs = lualogging.logger(log)
    end)

    it("has the methods of theirs, which log at our levels and return true", function()
      for _, level in ipairs(LEVELS) do
        assert.is_true(theirs[level[2]:lower()](theirs, "by its method"))
        assert.is_true(theirs:log(level[2], "by log"))
        for i = #records - 1, #records do
          assert.equal(level[1], records[i].level)
          assert.equal("app", records[i].logger)
        end
        assert.equal("by its method", records[#records - 1].message)
        assert.equal("by log", records[#records].message)
      end
    end)

    it("formats only if there are arguments", function()
      theirs:info("%d of %s: 100%%", 3, "five")
      theirs:info("%d of %s: 100%%")
      theirs:log("WARN", "%5.1f", 1 / 3)
      theirs:log("WARN", "%5.1f")
      assert.same({ "3 of five: 100%", "%d of %s: 100%%", "  0.3", "%5.1f" }, messages(records))
    end)

    it("calls a function for the message, with the arguments, only if it is wanted", function()
      local calls = 0
      local function make(...)
        calls = calls + 1
        return ("%s and %s, 100%%"):format(...)
      end
      theirs:info(make, "one", "two")
      theirs:log("ERROR", make, "a", "b")
      assert.same({ "one and two, 100%", "a and b, 100%" }, messages(records))
      theirs:setLevel("ERROR")
      assert.is_true(theirs:info(make, "one", "two"))
      assert.is_true(theirs:log("WARN", make, "one", "two"))
      assert.equal(2, calls)
      assert.equal(2, #records)
    end)

    it("raises the error of such a function", function()
      assert.equal("no", raised(theirs.info, theirs, function() error("no", 0) end))
      assert.same({}, records)
    end)

    it("takes messages of any type", function()
      theirs:info()
      theirs:info(nil)
      theirs:info(5)
      theirs:info(true)
      theirs:info { 1, { a = 2 } }
      theirs:info(opero.errors.OperoError "no")
      theirs:info(function() return { 1 } end)
      theirs:info(function() end)
      assert.same({
        "nil", "nil", "5", "true", '[1,{"a":2}]', "OperoError: no", "[1]", "nil",
      }, messages(records))
      for _, record in ipairs(records) do
        assert.same({}, record.fields)
      end
    end)

    it("has a table behind the arguments as fields, as ours", function()
      theirs:info("%d", 1, { a = 2 })
      assert.equal("1", records[1].message)
      assert.same({ a = 2 }, records[1].fields)
    end)

    it("has the context of the task, and an adapter's fields", function()
      theirs = lualogging.logger(opero.ContextAdapter(log, { b = 2 }))
      opero.log_context(log, { a = 1 }, function()
        theirs:info "m"
      end)
      assert.same({ a = 1, b = 2 }, records[1].fields)
    end)

    it("setLevel sets the level of the logger, by the names they have", function()
      for _, level in ipairs(LEVELS) do
        theirs:setLevel(level[2])
        assert.equal(level[1], log:level())
        theirs:setLevel(theirs[level[2]]) -- code reads the levels off the logger
        assert.equal(level[1], log:level())
      end
      theirs:setLevel("OFF")
      assert.equal("off", log:level())
      theirs:fatal "never"
      assert.same({}, records)
      theirs:setLevel("DEBUG")
      assert.is_true(theirs:log("OFF", "never"))
      assert.same({}, records)
    end)

    it("below its level looks at no argument, and returns true", function()
      local watched = setmetatable({}, { __tostring = function() error "seen" end })
      theirs:setLevel("FATAL")
      for _, level in ipairs(LEVELS) do
        assert.is_true(theirs[level[2]:lower()](theirs, "%s", level[2] == "FATAL" or watched))
      end
      assert.same({ "true" }, messages(records))
    end)

    it("refuses levels that are none, naming them", function()
      for _, level in ipairs { "LOUD", "info", "warning", "WARNING", 5 } do
        local err = refused(theirs.log, theirs, level, "m")
        assert.equal("log.level", err.path)
        assert.equal(level, err.value)
        err = refused(theirs.setLevel, theirs, level)
        assert.equal("setLevel.level", err.path)
      end
      assert.equal("setLevel.level: expected a level of lualogging, such as DEBUG or WARN, "
        .. 'got "LOUD" (a string)', refused(theirs.setLevel, theirs, "LOUD").message)
      assert.equal("log.level: expected a level of lualogging, such as DEBUG or WARN, got nil",
        refused(theirs.log, theirs).message)
      assert.same({}, records)
      assert.equal("debug", log:level())
    end)

    it("is made of a logger, and of nothing else", function()
      for _, other in ipairs { 5, "x", {}, print, theirs, io.stdout } do
        local err = refused(lualogging.logger, other)
        assert.equal("lualogging.logger.logger", err.path)
        assert.matches("expected a logger, of get_logger or ContextAdapter, got ", err.message)
      end
      assert.equal("lualogging.logger.logger", refused(lualogging.logger).path)
    end)

    it("does what the real one does with the same calls", function()
      local logging = real "logging"
      if not logging then
        pending("lualogging is not installed")
        return
      end
      local expected, got = {}, {}
      local name_of = {}
      for _, level in ipairs(LEVELS) do
        name_of[level[1]] = level[2]
      end
      local original = logging.new(function(_, level, message)
        expected[#expected + 1] = { level, message }
        return true
      end)
      local function make(...)
        return "made of " .. table.concat({ ... }, ",")
      end
      for _, level in ipairs { "DEBUG", "WARN", "FATAL" } do
        original:setLevel(level)
        theirs:setLevel(level)
        for i in ipairs(expected) do -- it tells of changes
          expected[i] = nil
        end
        for _, call in ipairs {
          { "debug", "m" }, { "info", "100%" }, { "info", "100%%" }, { "warn", "%d of %s", 1, "x" },
          { "error", "%5.2f|%-5s|%x", 1 / 3, "a", 255 }, { "fatal", make, 1, 2 }, { "fatal", 5 },
          { "fatal", true }, { "fatal", nil }, { "log", "INFO", "m" }, { "log", "WARN", "%d%%", 3 },
          { "log", "ERROR", make, "x" }, { "log", "FATAL", "%s" }, { "fatal", "" },
        } do
          original[call[1]](original, table.unpack(call, 2))
          theirs[call[1]](theirs, table.unpack(call, 2))
        end
        for i, record in ipairs(records) do
          got[i], records[i] = { name_of[record.level], record.message }, nil
        end
        assert.is_true(#expected > 0)
        assert.same(expected, got)
        got = {}
      end
    end)
  end)

  it("sink and logger together lead one logger to another, and round in a circle once", function()
    local records = {}
    local keep = { output = function(line) records[#records + 1] = line end, format = "plain" }
    local other = lualogging.logger(opero.get_logger "other")
    opero.configure_logging { sinks = { lualogging.sink(other), keep } }
    log:warning("one", { a = 1 })
    assert.same({ "other: app: one  a=1", "app: one  a=1" }, records)
  end)
end)
