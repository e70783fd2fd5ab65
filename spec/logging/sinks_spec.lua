-- Where lines go: descriptors, files, functions and the system's log; and what becomes of those
-- that cannot get there.

local dirent = require "posix.dirent"
local log_support = require "spec.logging.support"
local opero = require "opero"
local runtime_support = require "spec.runtime.support"
local signal = require "posix.signal"
local stat = require "posix.sys.stat"
local stdlib = require "posix.stdlib"
local support = require "spec.support"
local unistd = require "posix.unistd"
local wait = require "posix.sys.wait"

local output_of, run_program = runtime_support.output_of, runtime_support.run_program
local refused = support.refused

local function contents(path)
  local file <close> = assert(io.open(path))
  return file:read("a")
end

-- Closes files that nobody uses any more, those of other specs.
local function close_unused()
  collectgarbage()
  collectgarbage()
end

-- How many descriptors this process has open.
local function descriptors()
  local count = 0
  for name in dirent.files("/proc/self/fd") do
    count = count + (name:find("^%d+$") and 1 or 0)
  end
  return count
end

-- What a record of the library's own says of a failure, in a plain line.
local function failure(output, err)
  return ("opero: a log output failed  error=%s output=%s"):format(err, output)
end

-- The lines of what a program wrote to stderr, without times.
local function without_times(text)
  return (text:gsub("%d%d%d%d%-%d%d%-%d%dT[%d:.]+Z ", ""))
end

describe("log records go", function()
  local log, folder

  before_each(function()
    log = opero.get_logger "app"
    folder = assert(stdlib.mkdtemp("/tmp/opero-sinks-XXXXXX"))
  end)

  after_each(function()
    log_support.restore()
    assert(os.execute("rm -r '" .. folder .. "'"))
  end)

  -- A path in a folder that is removed afterwards.
  local function path_of(name)
    return folder .. "/" .. name
  end

  -- Configures outputs and functions, in the form that most of these specs want.
  local function configure(sinks, options)
    local all = { level = "debug", format = "plain", sinks = {} }
    for i, sink in ipairs(sinks) do
      all.sinks[i] = type(sink) == "table" and sink.output and sink or { output = sink }
    end
    for name, value in pairs(options or {}) do
      all[name] = value
    end
    return opero.configure_logging(all)
  end

  -- A function for a sink, and the list of the lines it gets.
  local function keeper()
    local lines = {}
    return function(line) lines[#lines + 1] = line end, lines
  end

  -- A function for a sink that fails when the message is "bad", and the list of what it is told.
  local function choosy(err)
    local got = {}
    return function(_, record)
      got[#got + 1] = record.message
      if record.message == "bad" then
        error(err or "it was bad", 0)
      end
    end, got
  end

  describe("to the standard streams:", function()
    it("stderr, as text, if nothing is configured, or no output", function()
      for _, configuration in ipairs {
        "", "opero.configure_logging()", "opero.configure_logging {}",
        'opero.configure_logging { output = "stderr" }',
        'opero.configure_logging { sinks = { { output = "stderr", format = "text" } } }',
      } do
        local outcome = run_program(([[
          local opero = require "opero"
          %s
          local log = opero.get_logger "app"
          log:debug "never"
          log:info("fetched %%d bytes", 3, { url = "/a" })
          opero.get_logger():warning "m"
        ]]):format(configuration))
        assert.equal(0, outcome.code)
        assert.equal("", outcome.out)
        assert.equal("INFO     app: fetched 3 bytes  url=/a\nWARNING  root: m\n",
          without_times(outcome.err))
      end
    end)

    it("stdout, in order with what is printed", function()
      local expected = { "printed 0\n", "app: logged 1\n", "written app: logged 2\n" }
      for i = 3, 1000 do
        expected[i + 1] = (i % 3 == 0 and "app: logged %d\n" or "printed %d\n"):format(i)
      end
      assert.equal(table.concat(expected), output_of [[
        local opero = require "opero"
        opero.configure_logging { output = "stdout", format = "plain" }
        local log = opero.get_logger "app"
        print("printed 0")
        log:info "logged 1"
        io.write "written "
        log:info "logged 2"
        for i = 3, 1000 do
          if i % 3 == 0 then
            log:info("logged %d", i)
          else
            print("printed " .. i)
          end
        end
      ]])
    end)

    it("which stay open when others are configured", function()
      assert.equal("a\napp: b\nc\napp: d\n", output_of(([[
        local opero = require "opero"
        local log = opero.get_logger "app"
        print "a"
        opero.configure_logging { output = "stdout", format = "plain" }
        log:info "b"
        opero.configure_logging { output = { file = "%s" } }
        print "c"
        opero.configure_logging { output = "stdout", format = "plain" }
        log:info "d"
      ]]):format(path_of "log")))
    end)

    it("as long as they are there: with stderr closed nothing fails", function()
      local path = path_of "log"
      assert.equal("app: a\nstill here\n", output_of(([[
        local opero = require "opero"
        local log = opero.get_logger "app"
        require "posix.unistd".close(2)
        log:info "nowhere"
        opero.configure_logging { output = { file = "%s" }, format = "plain" }
        log:info "in the file"
        io.stderr:write "not in the file"
        io.stderr:flush()
        opero.configure_logging { output = "stdout", format = "plain" }
        log:info "a"
        print "still here"
      ]]):format(path)))
      assert.equal("app: in the file\n", contents(path))
    end)
  end)

  describe("to a file:", function()
    it("which is made if need be, and appended to", function()
      local path = path_of "log"
      configure { { output = { file = path } } }
      assert.equal("", contents(path))
      log:info "one"
      assert.equal("app: one\n", contents(path))
      log:info "two"
      configure { { output = { file = path } } }
      log:info "three"
      assert.equal("app: one\napp: two\napp: three\n", contents(path))
      local file <close> = assert(io.open(path, "a"))
      file:write("from elsewhere\n")
      file:close()
      log:info "four"
      assert.equal("app: one\napp: two\napp: three\nfrom elsewhere\napp: four\n", contents(path))
    end)

    it("whose path may be relative: the folder is that of when it was configured", function()
      local before = unistd.getcwd()
      finally(function() assert(unistd.chdir(before)) end)
      assert(stat.mkdir(path_of "elsewhere"))
      assert(unistd.chdir(folder))
      configure { { output = { file = "log" } } }
      log:info "one"
      assert(unistd.chdir(path_of "elsewhere"))
      log:info "two"
      assert(os.rename(path_of "log", path_of "log.1"))
      assert.is_true(opero.reopen_logs())
      log:info "three"
      assert.equal("app: one\napp: two\n", contents(path_of "log.1"))
      assert.equal("app: three\n", contents(path_of "log"))
      assert.is_nil(io.open(path_of "elsewhere/log"))
    end)

    it("with names of any kind", function()
      for _, name in ipairs { "a b", "ü", "%s", "-", "x.log'" } do
        configure { { output = { file = path_of(name) } } }
        log:info "m"
        assert.equal("app: m\n", contents(path_of(name)))
      end
    end)

    it("whole lines, however long", function()
      local path = path_of "log"
      configure { { output = { file = path } } }
      local long = ("x"):rep(8000)
      for i = 1, 100 do
        log:info("%d", i, { a = long, b = long, c = long, d = long })
      end
      local count = 0
      for line in io.lines(path) do
        count = count + 1
        assert.equal(("app: %d  a=%s b=%s c=%s d=%s"):format(count, long, long, long, long), line)
      end
      assert.equal(100, count)
    end)

    it("which children do not inherit when they run another program", function()
      configure { { output = { file = path_of "log" } } }
      local pipe <close> = assert(io.popen("ls -l /proc/self/fd"))
      assert.not_matches(folder, pipe:read("a"), 1, true)
    end)
  end)

  describe("to a file again after it was moved away:", function()
    it("reopen_logs opens a new one", function()
      local path = path_of "log"
      configure { { output = { file = path } } }
      log:info "one"
      assert(os.rename(path, path_of "log.1"))
      log:info "two"
      assert.is_nil(io.open(path))
      assert.same({ true, n = 1 }, table.pack(opero.reopen_logs()))
      log:info "three"
      assert.equal("app: one\napp: two\n", contents(path_of "log.1"))
      assert.equal("app: three\n", contents(path))
    end)

    it("all of them, with their levels and formats", function()
      configure({
        { output = { file = path_of "a" }, level = "error" },
        { output = { file = path_of "b" }, format = "logfmt" },
      })
      for _, name in ipairs { "a", "b" } do
        assert(os.rename(path_of(name), path_of(name .. ".1")))
      end
      assert.is_true(opero.reopen_logs())
      log:info "one"
      log:error "two"
      assert.equal("app: two\n", contents(path_of "a"))
      assert.matches("level=info logger=app msg=one\n.*level=error logger=app msg=two\n$",
        contents(path_of "b"))
      assert.equal("", contents(path_of "a.1"))
      assert.equal("", contents(path_of "b.1"))
    end)

    it("goes on with the old one when it cannot be, and says why", function()
      assert(stat.mkdir(path_of "sub"))
      local path = path_of "sub/log"
      configure { { output = { file = path } }, { output = { file = path_of "other" } } }
      log:info "one"
      assert(os.rename(path_of "sub", path_of "moved"))
      assert(os.rename(path_of "other", path_of "other.1"))
      assert.same({ n = 2, nil, path .. ": No such file or directory" },
        table.pack(opero.reopen_logs()))
      log:info "two"
      assert.equal("app: one\napp: two\n", contents(path_of "moved/log"))
      assert.equal("app: two\n", contents(path_of "other"))
      assert(stat.mkdir(path_of "sub"))
      assert.is_true(opero.reopen_logs())
      log:info "three"
      assert.equal("app: one\napp: two\n", contents(path_of "moved/log"))
      assert.equal("app: three\n", contents(path))
    end)

    it("says so of each", function()
      assert(stat.mkdir(path_of "sub"))
      configure {
        { output = { file = path_of "sub/a" } }, { output = { file = path_of "sub/b" } },
      }
      assert(os.rename(path_of "sub", path_of "moved"))
      assert.same({ n = 2, nil, ("%s: No such file or directory; %s: No such file or directory")
        :format(path_of "sub/a", path_of "sub/b") }, table.pack(opero.reopen_logs()))
    end)

    it("where there is no file there is nothing to do", function()
      configure { "stderr", "stdout", function() end }
      assert.is_true(opero.reopen_logs())
      configure {}
      assert.is_true(opero.reopen_logs())
    end)

    it("an output may be what asks for it", function()
      local path = path_of "log"
      configure {
        function()
          os.rename(path, path_of "log.1")
          opero.reopen_logs()
        end,
        { output = { file = path } },
      }
      log:info "one"
      assert.equal("app: one\n", contents(path))
      assert.equal("", contents(path_of "log.1"))
    end)
  end)

  describe("to several outputs:", function()
    it("in their order, each with its level and its format", function()
      local got = {}
      local function note(name)
        return function(line) got[#got + 1] = name .. line end
      end
      configure({
        { output = note "a:", level = "error" },
        { output = note "b:" },
        { output = note "c:", format = "logfmt" },
        { output = note "d:", level = "off" },
        { output = { file = path_of "log" }, format = "json", level = "warning" },
        { output = { file = path_of "log" } },
      }, { format = "plain" })
      opero.simulate(function()
        log:info "one"
        log:error "two"
      end)
      local time = "time=1970-01-01T00:00:00.000000Z "
      assert.same({
        "b:app: one", "c:" .. time .. "level=info logger=app msg=one",
        "a:app: two", "b:app: two", "c:" .. time .. "level=error logger=app msg=two",
      }, got)
      assert.equal('app: one\n{"time":"1970-01-01T00:00:00.000000Z","level":"error",'
        .. '"logger":"app","message":"two"}\napp: two\n', contents(path_of "log"))
    end)

    it("none at all", function()
      configure {}
      log:critical "nowhere"
      assert.is_false(log:enabled("critical"))
    end)

    it("those that were configured last, and to no others", function()
      local first, first_lines = keeper()
      local second, second_lines = keeper()
      configure { first, { output = { file = path_of "log" } } }
      log:info "one"
      configure { second }
      log:info "two"
      assert.same({ "app: one" }, first_lines)
      assert.same({ "app: two" }, second_lines)
      assert.equal("app: one\n", contents(path_of "log"))
    end)
  end)

  describe("to a function:", function()
    it("which gets the line and the record", function()
      local calls = {}
      configure({ function(...) calls[#calls + 1] = table.pack(...) end }, { format = "plain" })
      local adapter = opero.ContextAdapter(opero.get_logger "app.db", { b = { 2, { x = 3 } } })
      opero.simulate(function()
        opero.sleep(1.5)
        opero.log_context(log, { a = 1 }, function()
          adapter:warning("%d rows", 3, { c = false, time = "mine", [5] = "five" })
        end)
      end)
      assert.same({ {
        n = 2,
        'app.db: 3 rows  a=1 b=[2,{"x":3}] 5=five c=false fields.time=mine',
        {
          time = 1.5, level = "warning", logger = "app.db", message = "3 rows",
          fields = { a = 1, b = { 2, { x = 3 } }, c = false, time = "mine", ["5"] = "five" },
        },
      } }, calls)
      assert.equal("float", math.type(calls[1][2].time))
    end)

    it("in the format that was asked for", function()
      local line
      for format, pattern in pairs {
        text = "^%S+ INFO     app: m  a=1$", plain = "^app: m  a=1$",
        logfmt = "^time=%S+ level=info logger=app msg=m a=1$", json = '^{.*"message":"m","a":1}$',
      } do
        configure({ function(text) line = text end }, { format = format })
        log:info("m", { a = 1 })
        assert.matches(pattern, line)
      end
    end)

    it("which may change what it is given: that is its own", function()
      local seen = {}
      local function spoil(_, record)
        seen[#seen + 1] = record
        record.fields.a = "spoilt"
        record.fields.list[1] = "spoilt"
        record.message = nil
      end
      local keep, lines = keeper()
      configure { spoil, spoil, keep }
      opero.log_context(log, { a = 1, list = { 1 } }, function()
        log:info "m"
        log:info "m"
      end)
      assert.equal(4, #seen)
      assert.same({ "app: m  a=1 list=[1]", "app: m  a=1 list=[1]" }, lines)
    end)

    it("or to whatever can be called", function()
      local object = setmetatable({ lines = {} }, {
        __call = function(self, line) self.lines[#self.lines + 1] = line end,
      })
      configure { object }
      log:info "m"
      assert.same({ "app: m" }, object.lines)
    end)

    it("which is let go of when others are configured", function()
      local gone = setmetatable({}, { __mode = "k" })
      do
        local fn = keeper()
        gone[fn] = true
        configure { fn }
      end
      configure {}
      collectgarbage()
      collectgarbage()
      assert.is_nil(next(gone))
    end)

    it("what it logs itself goes to the other outputs alone", function()
      local other, lines = keeper()
      local calls = 0
      configure {
        function(_, record)
          calls = calls + 1
          log:info("heard of %s", record.message, { list = { 1 } })
        end,
        other,
      }
      log:info "one"
      opero.log_context(log, { a = 1 }, function() log:info "two" end)
      assert.equal(2, calls)
      assert.same({
        "app: heard of one  list=[1]", "app: one",
        "app: heard of two  a=1 list=[1]", "app: two  a=1",
      }, lines)
    end)

    it("two that log hear of each other's records once", function()
      local got = {}
      local function chatty(name)
        return function(_, record)
          got[#got + 1] = name .. " got " .. record.message
          log:info(name .. "'s")
        end
      end
      configure { chatty "a", chatty "b" }
      log:info "one"
      assert.same({
        "a got one", "b got a's", "b got one", "a got b's",
      }, got)
    end)

    it("alone, nothing comes of what it logs", function()
      local got = {}
      configure { function(line)
        got[#got + 1] = line
        log:info "what it logs"
      end }
      log:info "one"
      log:info "two"
      assert.same({ "app: one", "app: two" }, got)
    end)

    it("it runs in the task that logs, and sees its context", function()
      local seen = {}
      configure { function() seen[#seen + 1] = { opero.current(), log:context().a } end }
      opero.run(function()
        log:add_context { a = 1 }
        log:info "m"
        assert.same({ { opero.current(), 1 } }, seen)
      end)
    end)

    it("it cannot suspend the task: that is an error of its own", function()
      local keep, lines = keeper()
      configure { function(_, record)
        if record.logger == "app" then
          opero.sleep(1)
        end
      end, keep }
      opero.simulate(function()
        log:info "m"
        assert.equal(0, opero.now())
      end)
      assert.equal(2, #lines)
      assert.matches("^opero: a log output failed  error=.*cannot suspend.* output=function$",
        lines[1])
      assert.equal("app: m", lines[2])
    end)

    it("it cannot configure logging, nor can what it calls", function()
      local errors_of = {}
      local keep, lines = keeper()
      configure { function()
        local ok, err = pcall(opero.configure_logging,
          { level = "error", levels = { app = "off" } })
        errors_of[#errors_of + 1] = not ok and err or nil
        coroutine.wrap(function()
          ok, err = pcall(opero.configure_logging, { output = { file = path_of "log" } })
          errors_of[#errors_of + 1] = not ok and err or nil
        end)()
      end, keep }
      log:info "m"
      assert.equal(2, #errors_of)
      for _, err in ipairs(errors_of) do
        assert.equal("ConfigError: configure_logging: logging cannot be configured by an output "
          .. "of it", tostring(err))
      end
      assert.equal("debug", log:level())
      assert.is_nil(io.open(path_of "log"))
      log:info "m"
      assert.same({ "app: m", "app: m" }, lines)
      configure {} -- from without it can be again
    end)
  end)

  describe("elsewhere when an output fails:", function()
    it("it is reported once, through the others, until it works again", function()
      local bad, bad_got = choosy()
      local keep, lines = keeper()
      configure { bad, keep }
      for _, message in ipairs { "bad", "bad", "good", "good", "bad", "bad" } do
        log:info(message)
      end
      assert.same({
        failure("function", '"it was bad"'), "app: bad", "app: bad", "app: good", "app: good",
        failure("function", '"it was bad"'), "app: bad", "app: bad",
      }, lines)
      assert.same({ "bad", "bad", "good", "good", "bad", "bad" }, bad_got)
    end)

    it("the report is a record of the logger opero, at the level error", function()
      local record
      configure({ function() error("no", 0) end, function(_, given)
        record = record or given
      end }, { levels = { opero = "off" } })
      opero.simulate(function()
        opero.sleep(2)
        opero.log_context(log, { a = 1 }, log.info, log, "m", { b = 2 })
      end)
      assert.same({
        time = 2, level = "error", logger = "opero", message = "a log output failed",
        fields = { output = "function", error = "no" },
      }, record)
    end)

    it("what the error was is said, whatever it was", function()
      for _, case in ipairs {
        { "text", "text" }, { "two\nlines", '"two\\nlines"' },
        { opero.errors.TimeoutError "too slow", '"too slow"' }, { { message = "m" }, "m" }, { 5 },
        { false }, { print },
        { setmetatable({}, { __tostring = function() error "asked" end }) },
      } do
        local keep, lines = keeper()
        configure { function() error(case[1], 0) end, keep }
        log:info "m"
        assert.equal(2, #lines)
        assert.equal(failure("function", case[2] or '"an error that is no text"'), lines[1])
      end
    end)

    it("on stderr when it is alone, once, until it works again", function()
      local outcome = run_program [[
        local opero = require "opero"
        local log = opero.get_logger "app"
        opero.configure_logging { output = function(_, record)
          print(record.message)
          if record.message == "bad" then
            error("it was bad", 0)
          end
        end }
        for _, message in ipairs { "bad", "bad", "good", "bad", "bad" } do
          log:info(message)
        end
        print "still here"
      ]]
      assert.equal(0, outcome.code)
      assert.equal("bad\nbad\ngood\nbad\nbad\nstill here\n", outcome.out)
      assert.equal(('ERROR    %s\n'):format(failure("function", '"it was bad"')):rep(2),
        without_times(outcome.err))
    end)

    it("on stderr when no other takes errors", function()
      local outcome = run_program [[
        local opero = require "opero"
        opero.configure_logging { sinks = {
          { output = function() error("no", 0) end },
          { output = "stdout", level = "critical" },
          { output = function() print "never" end, level = "off" },
        } }
        opero.get_logger "app":info "m"
      ]]
      assert.equal("", outcome.out)
      assert.equal(("ERROR    %s\n"):format(failure("function", "no")),
        without_times(outcome.err))
    end)

    it("of several that fail each is reported", function()
      local outcome = run_program [[
        local opero = require "opero"
        local log = opero.get_logger "app"
        opero.configure_logging { sinks = {
          { output = function() error("first", 0) end },
          { output = { file = "/dev/full" } },
          { output = function() error("third", 0) end },
        } }
        for _ = 1, 3 do
          log:info "m"
        end
      ]]
      local lines = {}
      for line in without_times(outcome.err):gmatch("[^\n]+") do
        lines[#lines + 1] = line:match("^ERROR    (.*)$")
      end
      table.sort(lines)
      local expected = {
        failure("function", "first"), failure("/dev/full", '"No space left on device"'),
        failure("function", "third"),
      }
      table.sort(expected)
      assert.same(expected, lines)
    end)

    it("the records of the others are not lost, wherever it stands among them", function()
      for place = 1, 3 do
        local keep, lines = keeper()
        local sinks = { keep, { output = { file = path_of("log" .. place) } } }
        table.insert(sinks, place, function() error("no", 0) end)
        configure(sinks)
        for i = 1, 3 do
          log:info("%d", i)
        end
        local found = { kept = {}, written = {} }
        for _, line in ipairs(lines) do
          table.insert(found.kept, line:match("^app: (%d)$"))
        end
        for line in io.lines(path_of("log" .. place)) do
          table.insert(found.written, line:match("^app: (%d)$"))
        end
        assert.same({ kept = { "1", "2", "3" }, written = { "1", "2", "3" } }, found)
        assert.equal(4, #lines)
      end
    end)

    it("a disk that is full is one", function()
      local keep, lines = keeper()
      configure { { output = { file = "/dev/full" } }, keep }
      for i = 1, 3 do
        log:info("%d", i)
      end
      assert.same({
        failure("/dev/full", '"No space left on device"'), "app: 1", "app: 2", "app: 3",
      }, lines)
    end)

    it("one that fails is not asked to report itself, nor one that runs", function()
      local calls = {}
      configure {
        function(_, record)
          calls[#calls + 1] = "a " .. record.message
          if record.logger == "app" then
            log:info "inner"
          end
        end,
        function(_, record)
          calls[#calls + 1] = "b " .. record.message
          error("no", 0)
        end,
        function(_, record) calls[#calls + 1] = "c " .. record.message end,
      }
      log:info "outer"
      assert.same({
        "a outer", "b inner", "c a log output failed", "c inner", "b outer", "c outer",
      }, calls)
    end)
  end)

  describe("to a pipe", function()
    it("that nobody reads any more: the process goes on", function()
      local path = path_of "log"
      local outcome = run_program(([[
        local opero = require "opero"
        local signal = require "posix.signal"
        local unistd = require "posix.unistd"
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        local log = opero.get_logger "app"
        local r, w = unistd.pipe()
        unistd.close(r)
        unistd.dup2(w, 2)
        for i = 1, 3 do
          log:info("to stderr %%d", i)
        end
        opero.configure_logging { format = "plain", sinks = {
          { output = "stderr" }, { output = { file = "%s" } },
        } }
        for i = 1, 2 do
          log:info("%%d", i)
        end
        print "still here"
      ]]):format(path))
      assert.equal(0, outcome.code)
      assert.equal("still here\n", outcome.out)
      assert.equal(failure("stderr", '"Broken pipe"') .. "\napp: 1\napp: 2\n", contents(path))
    end)

    it("that is stdout: it goes on, and says so on stderr, once", function()
      local outcome = run_program [[
        local opero = require "opero"
        local signal = require "posix.signal"
        local unistd = require "posix.unistd"
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        local log = opero.get_logger "app"
        opero.configure_logging { output = "stdout", format = "plain" }
        local r, w = unistd.pipe()
        unistd.close(r)
        unistd.dup2(w, 1)
        for i = 1, 3 do
          log:info("%d", i)
        end
        io.stderr:write "still here\n"
      ]]
      assert.equal(0, outcome.code)
      assert.equal(("ERROR    %s\nstill here\n"):format(failure("stdout", '"Broken pipe"')),
        without_times(outcome.err))
    end)

    it("that nobody reads any more: SIGPIPE is afterwards as it was", function()
      local outcome = run_program [[
        local opero = require "opero"
        local signal = require "posix.signal"
        local unistd = require "posix.unistd"
        local caught = 0
        signal.signal(signal.SIGPIPE, function() caught = caught + 1 end)
        local r, w = unistd.pipe()
        unistd.close(r)
        unistd.dup2(w, 2)
        opero.get_logger "app":info "m"
        local before = caught
        unistd.write(w, "x")
        print(before, caught)
      ]]
      assert.equal("0\t1\n", outcome.out)
    end)

    it("that is full and does not block: the reader gets it all", function()
      local outcome = run_program [[
        local fcntl = require "posix.fcntl"
        local opero = require "opero"
        local unistd = require "posix.unistd"
        local wait = require "posix.sys.wait"
        local r, w = unistd.pipe()
        local pid = unistd.fork()
        if pid == 0 then
          unistd.close(w)
          local parts = {}
          repeat
            parts[#parts + 1] = unistd.read(r, 4096)
          until parts[#parts] == ""
          local count = 0
          for line in table.concat(parts):gmatch("([^\n]*)\n") do
            count = count + 1
            assert(line == ("app: %d  text=%s"):format(count, ("x"):rep(1000)), line)
          end
          print(count)
          io.stdout:flush()
          unistd._exit(0)
        end
        unistd.close(r)
        unistd.dup2(w, 2)
        unistd.close(w)
        fcntl.fcntl(2, fcntl.F_SETFL, fcntl.fcntl(2, fcntl.F_GETFL) | fcntl.O_NONBLOCK)
        opero.configure_logging { format = "plain" }
        local log = opero.get_logger "app"
        for i = 1, 1000 do
          log:info("%d", i, { text = ("x"):rep(1000) })
        end
        unistd.close(2)
        wait.wait(pid)
      ]]
      assert.equal("1000\n", outcome.out)
    end)

    it("that stays full is waited for a second, and the next line does not go on where it ended",
      function()
        assert.equal(failure("stderr", '"Resource temporarily unavailable"') .. [[

app: long
app: next
true	true
app: long
app: next
]], output_of [[
          local fcntl = require "posix.fcntl"
          local opero = require "opero"
          local unistd = require "posix.unistd"
          local log = opero.get_logger "app"
          local r, w = unistd.pipe()
          local before = unistd.dup(2)
          unistd.dup2(w, 2)
          for _, fd in ipairs { r, 2 } do
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | fcntl.O_NONBLOCK)
          end
          local function drain()
            local text, part = "", unistd.read(r, 65536)
            while part do
              text, part = text .. part, unistd.read(r, 65536)
            end
            return text
          end
          opero.configure_logging { format = "plain", sinks = {
            { output = "stderr" },
            { output = function(line) print((line:gsub("  text=y*", ""))) end },
          } }
          while unistd.write(2, ("x"):rep(4096)) do end
          unistd.read(r, 4096) -- now there is room for a page
          local from = opero.now()
          log:info("long", { text = ("y"):rep(8000) })
          local waited = opero.now() - from
          local text = drain()
          log:info "next"
          text = text .. drain()
          unistd.dup2(before, 2)
          print(waited >= 1, waited < 30)
          io.write((text:gsub("^x*", ""):gsub("  text=y*", "")))
        ]])
      end)
  end)

  describe("from several processes to one file:", function()
    it("lines never mix", function()
      local path = path_of "log"
      local PROCESSES <const>, LINES <const> = 4, 300
      configure { { output = { file = path } } }
      local pids = {}
      for process = 1, PROCESSES do
        local pid = assert(unistd.fork())
        if pid == 0 then
          if process % 2 == 0 then -- with a descriptor of its own, or with the one it has
            configure { { output = { file = path } } }
          end
          for i = 1, LINES do
            log:info("%d", i, { process = process, text = ("x"):rep(i * 13) })
          end
          unistd._exit(0)
        end
        pids[process] = pid
      end
      for _, pid in ipairs(pids) do
        assert.same({ pid, "exited", 0 }, { wait.wait(pid) })
      end
      local last = { 0, 0, 0, 0 }
      for line in io.lines(path) do
        local i, process, text = line:match("^app: (%d+)  process=(%d) text=(x+)$")
        process, i = tonumber(process), tonumber(i)
        assert.is_truthy(process and i == last[process] + 1 and #text == i * 13)
        last[process] = i
      end
      assert.same({ LINES, LINES, LINES, LINES }, last)
    end)
  end)

  describe("to the system's log,", function()
    local calls, before

    before_each(function()
      calls, before = {}, package.loaded["posix.syslog"]
      local stub = { LOG_PID = "pid" }
      for _, name in ipairs {
        "DEBUG", "INFO", "WARNING", "ERR", "CRIT", "USER", "DAEMON", "LOCAL0", "LOCAL7", "AUTHPRIV",
      } do
        stub["LOG_" .. name] = name
      end
      function stub.openlog(...) calls[#calls + 1] = { "openlog", ... } end
      function stub.syslog(...) calls[#calls + 1] = { ... } end
      package.loaded["posix.syslog"] = stub
    end)

    after_each(function()
      package.loaded["posix.syslog"] = before
    end)

    it("plain lines with the priority of their level", function()
      opero.configure_logging { level = "debug", output = "syslog" }
      for _, level in ipairs { "debug", "info", "warning", "error", "critical" } do
        log:log(level, "100%% of %s", "it", { a = 1 })
      end
      assert.same({
        { "openlog", "opero", "pid", "USER" },
        { "DEBUG", "app: 100% of it  a=1" }, { "INFO", "app: 100% of it  a=1" },
        { "WARNING", "app: 100% of it  a=1" }, { "ERR", "app: 100% of it  a=1" },
        { "CRIT", "app: 100% of it  a=1" },
      }, calls)
    end)

    it("with the identity, the facility, the level and the format that are asked for", function()
      opero.configure_logging { level = "debug", sinks = { {
        output = { syslog = { ident = "my app", facility = "local7" } }, level = "error",
        format = "json",
      } } }
      opero.simulate(function()
        log:warning "never"
        log:error "m"
      end)
      assert.same({
        { "openlog", "my app", "pid", "LOCAL7" },
        { "ERR", '{"time":"1970-01-01T00:00:00.000000Z","level":"error","logger":"app",'
          .. '"message":"m"}' },
      }, calls)
      opero.configure_logging { output = { syslog = {} }, format = "logfmt" }
      assert.same({ "openlog", "opero", "pid", "USER" }, calls[3])
      opero.configure_logging { output = "syslog", format = "plain" }
      log:info "m"
      assert.same({ "INFO", "app: m" }, calls[#calls])
    end)

    it("which fails like any other output", function()
      local keep, lines = keeper()
      package.loaded["posix.syslog"].syslog = function() error("no daemon", 0) end
      configure { "syslog", keep }
      log:info "m"
      assert.same({ failure("function", '"no daemon"'), "app: m" }, lines)
    end)

    it("is refused where luaposix is not installed", function()
      package.loaded["posix.syslog"] = nil
      package.preload["posix.syslog"] = function() error("there is none", 0) end
      finally(function() package.preload["posix.syslog"] = nil end)
      local keep, lines = keeper()
      configure { keep }
      local err = refused(opero.configure_logging, { output = "syslog" })
      assert.matches("^configure_logging: syslog needs luaposix: ", err.message)
      log:info "m"
      assert.same({ "app: m" }, lines)
    end)

    it("is not opened anew by a configuration that fails", function()
      configure { "syslog" }
      refused(configure, {
        { output = { syslog = { ident = "other" } } }, { output = { file = "/nowhere/log" } },
      })
      assert.same({ { "openlog", "opero", "pid", "USER" } }, calls)
    end)

    it("options are checked", function()
      for path, options in pairs {
        ["configure_logging.output.syslog"] = 5,
        ["configure_logging.output.syslog.ident"] = { ident = "" },
        ["configure_logging.output.syslog.facility"] = { facility = "USER" },
        ["configure_logging.output.syslog.idnt"] = { idnt = "x" },
      } do
        assert.equal(path, refused(opero.configure_logging, { output = { syslog = options } }).path)
      end
      assert.equal("configure_logging.output.syslog.ident",
        refused(opero.configure_logging, { output = { syslog = { ident = "a\0b" } } }).path)
      assert.same({}, calls)
    end)
  end)

  describe("where they went before, when a configuration is refused:", function()
    local EXPECTED <const> = 'expected one of "stderr", "stdout", "syslog"; { file = path }, '
      .. "{ syslog = {...} } or a function, got "

    it("nothing has changed", function()
      local keep, lines = keeper()
      configure({ keep, { output = { file = path_of "log" } } },
        { level = "warning", redact = { "pw" } })
      for _, options in ipairs {
        { output = "file" }, { output = 5 }, { output = {} }, { output = { file = 5 } },
        { output = { file = "" } }, { output = { file = "a\0b" } }, { output = { "stderr" } },
        { output = { file = "x", syslog = {} } }, { output = { file = folder } },
        { output = { file = "/nowhere/log" } }, { format = "xml" }, { level = "loud" },
        { sinks = "stderr" }, { sinks = { "stderr" } }, { sinks = { {} } },
        { sinks = { a = { output = "stderr" } } }, { output = "stderr", sinks = {} },
        { sinks = { { output = "stderr", format = "xml" } } }, { redact = "a" }, { outputs = "x" },
        { sinks = { { output = { file = path_of "new" } }, { output = { file = folder } } } },
        { sinks = { { output = function() end }, { output = { file = "/nowhere/x" } } } }, 5,
      } do
        local given = options
        if type(options) == "table" then
          given = { levels = { app = "off" }, level = "debug", redact = {} }
          for name, value in pairs(options) do
            given[name] = value
          end
        end
        local err = refused(opero.configure_logging, given)
        assert.matches("^configure_logging", err.message)
        assert.matches("^configure_logging", err.path)
      end
      assert.equal("warning", opero.get_logger():level())
      log:info "below"
      log:warning("m", { pw = "secret" })
      assert.same({ "app: m  pw=***" }, lines)
      assert.equal("app: m  pw=***\n", contents(path_of "log"))
    end)

    it("what had been opened is closed", function()
      configure { "stderr" }
      close_unused()
      local before = descriptors()
      refused(configure, { { output = { file = path_of "a" } }, { output = { file = folder } } })
      assert.equal(before, descriptors())
    end)

    it("it is said what was wrong, and where", function()
      for message, options in pairs {
        ['configure_logging.output: ' .. EXPECTED .. '"file" (a string)'] = { output = "file" },
        ["configure_logging.output: " .. EXPECTED .. "5"] = { output = 5 },
        ["configure_logging.sinks[2].output: " .. EXPECTED .. "nil"] = {
          sinks = { { output = "stderr" }, {} },
        },
        ["configure_logging.output.file: expected the path of a file, got 5"] = {
          output = { file = 5 },
        },
        ["configure_logging: /nowhere/log: No such file or directory"] = {
          output = { file = "/nowhere/log" },
        },
        ["configure_logging: " .. folder .. ": Is a directory"] = { output = { file = folder } },
        ['configure_logging.format: expected one of "text", "plain", "logfmt", "json", got "xml" '
          .. "(a string)"] = { format = "xml" },
        ['configure_logging.output: expected nothing beside sinks, got "stderr" (a string)'] = {
          output = "stderr", sinks = {},
        },
        ["configure_logging.sinks: expected a list, got 5"] = { sinks = 5 },
        ["configure_logging: expected a table of options, got 5"] = 5,
        ['configure_logging.outputs: unknown option; did you mean "output"?'] = { outputs = {} },
      } do
        assert.equal(message, refused(opero.configure_logging, options).message)
      end
    end)
  end)

  it("and leave no descriptor behind, over a thousand configurations", function()
    local path = path_of "log"
    configure { { output = { file = path } } }
    close_unused()
    local before = descriptors()
    for i = 1, 1000 do
      if i % 10 == 0 then
        refused(configure, { { output = { file = path } }, { output = { file = "/nowhere/x" } } })
      elseif i % 7 == 0 then
        opero.reopen_logs()
      else
        configure { { output = { file = path } } }
      end
      log:info("%d", i)
    end
    close_unused()
    assert.equal(before, descriptors())
    local count = 0
    for line in io.lines(path) do
      count = count + 1
      assert.equal("app: " .. count, line)
    end
    assert.equal(1000, count)
    configure {}
    assert.equal(before - 1, descriptors())
  end)

  it("while signals arrive", function()
    local caught = 0
    local previous = signal.signal(signal.SIGUSR1, function() caught = caught + 1 end)
    finally(function() signal.signal(signal.SIGUSR1, previous) end)
    configure { { output = { file = path_of "log" } } }
    for i = 1, 100 do
      signal.raise(signal.SIGUSR1)
      log:info("%d", i)
    end
    assert.equal(100, caught)
    local _, count = contents(path_of "log"):gsub("\n", "")
    assert.equal(100, count)
  end)
end)
