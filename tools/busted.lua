-- Runs busted under the very interpreter this file is run with; the packaged launcher takes
-- whichever Lua comes first in the path. Both ways out of the runner close the state, so that
-- leaks and errors of closing are seen. Lines go out one by one: a leak check that fails ends the
-- process without flushing what it had to say.
io.stdout:setvbuf("line")
-- Before busted: it loads what a spec requires anew for each file, and the error classes are to be
-- the same for all of them, and for the workers of pools.
require "opero".configure_logging { levels = { opero = "error" } } -- workers crash here in numbers
require "busted.runner"({ standalone = false })
