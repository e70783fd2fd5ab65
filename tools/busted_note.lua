-- A helper of busted: keeps the name of the test that runs in the file OPERO_TEST_NOTE names, for
-- who crashes or hangs cannot say any more where.
local path = assert(os.getenv("OPERO_TEST_NOTE"))

require "busted".subscribe({ "test", "start" }, function(element)
  local file <close> = assert(io.open(path, "w"))
  file:write(("%s:%d: %s\n"):format(element.trace.short_src, element.trace.currentline,
    element.name))
  return nil, true
end)
