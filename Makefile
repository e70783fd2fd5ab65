# Opero for Lua. `make help` lists what can be asked for.
#
# Everything built goes to build/, a variant of the build to a folder of its own in there:
#   REACTOR=poll  waits with poll(2) where epoll would be the default   build/poll
#   SANITIZE=1    AddressSanitizer and UndefinedBehaviorSanitizer        build/sanitize
#   STRICT=1      warnings are errors                                    build/strict
# They combine: build/poll-sanitize.

LUA ?= lua5.4
PREFIX ?= /usr/local
INSTALL ?= install
CLANG_FORMAT ?= clang-format
OBJCOPY ?= objcopy

ifneq ($(filter-out epoll poll,$(REACTOR)),)
  $(error REACTOR=$(REACTOR): expected epoll (the default on Linux) or poll)
endif
variant := $(if $(filter poll,$(REACTOR)),poll) $(if $(SANITIZE),sanitize) $(if $(STRICT),strict)
empty :=
space := $(empty) $(empty)
variant := $(subst $(space),-,$(strip $(variant)))
BUILD ?= build$(addprefix /,$(variant))

# --- flags -----------------------------------------------------------------------------------

CFLAGS ?= -O2 -g
WARNINGS := -Wall -Wextra -Wpedantic -Wshadow
ifndef LUA_INCDIR
  LUA_INCDIR := $(patsubst -I%,%,$(firstword $(shell pkg-config --cflags-only-I lua5.4 2>/dev/null)))
endif
ifeq ($(LUA_INCDIR),)
  LUA_INCDIR := $(patsubst %/lua.h,%,$(firstword $(wildcard \
    $(addsuffix /lua.h,/usr/include/lua5.4 /usr/local/include/lua5.4 /usr/local/include /usr/include))))
endif

# Without a PLT, calls into Lua cost less.
flags := -std=c11 -D_GNU_SOURCE= -fPIC -fno-plt $(WARNINGS)
ifeq ($(filter poll,$(REACTOR)),poll)
  flags += -DOPERO_REACTOR_POLL
endif
ifdef STRICT
  flags += -Werror
endif
ifdef SANITIZE
  override CFLAGS := -O1 -g
  sanitizers := -fsanitize=address,undefined -fno-sanitize-recover=all
  flags += $(sanitizers) -fno-omit-frame-pointer
  # The module stays mapped after lua_close, or a leak's report could not name its lines.
  module_flags := -Wl,-z,nodelete
endif
compile = $(CC) $(flags) $(CPPFLAGS) $(CFLAGS) $(addprefix -I,$(LUA_INCDIR)) -Icsrc

# --- what there is to build ------------------------------------------------------------------

sources := $(wildcard csrc/*.c)
objects := $(sources:csrc/%.c=$(BUILD)/obj/%.o)
module := $(BUILD)/lua/opero/core.so
library := $(BUILD)/libopero.a
# These know no Lua, so their tests are programs of their own.
pure_objects := $(filter $(addprefix $(BUILD)/obj/,\
  clock.o timers.o reactor.o ring.o port.o process.o \
  bytes.o fields.o record.o sink.o context.o histogram.o),$(objects))
c_tests := $(patsubst spec/c/%.c,$(BUILD)/c_tests/%,$(wildcard spec/c/*_test.c))

.DELETE_ON_ERROR:
.PHONY: all c_tests env setup demo test sanitize bench spec lint format install uninstall clean help FORCE

all: $(module) $(library) ## build opero/core.so and libopero.a (the default)

# The command line that compiles, kept so that other flags build anew what they concern.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(compile) $(LDFLAGS)' > $@.new
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@; fi

$(BUILD)/obj/%.o: csrc/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(compile) -MMD -MP -c $< -o $@

$(module): $(objects)
	@mkdir -p $(@D)
	$(CC) -shared $(sanitizers) $(CFLAGS) $(LDFLAGS) $(module_flags) $^ -lm -o $@

# One object with the internal names made local: a host may have a timers_add of its own.
$(library): $(objects)
	@rm -f $@
	$(LD) -r $^ -o $(BUILD)/obj/libopero.o
	$(OBJCOPY) --localize-hidden $(BUILD)/obj/libopero.o
	$(AR) rcs $@ $(BUILD)/obj/libopero.o

$(BUILD)/c_tests/%: spec/c/%.c $(pure_objects) $(BUILD)/flags
	@mkdir -p $(@D)
	$(compile) -MMD -MP $< $(pure_objects) $(LDFLAGS) -lm -o $@

c_tests: $(c_tests)

-include $(objects:.o=.d) $(c_tests:=.d)

# --- using it from the checkout --------------------------------------------------------------

env: ## print the export lines that make this build usable: eval "$$(make -s env)"
	+@$(MAKE) -s --no-print-directory all >&2
	@tools/with-build.sh --print $(BUILD)

setup: ## install what FOR=build|demo|test|sanitize|bench needs
	@LUA='$(LUA)' CC='$(CC)' tools/setup.sh $(or $(FOR),build)

# The set-up may change what this file finds (the headers of Lua), so what follows it is a make anew.
again = +@$(MAKE) --no-print-directory

demo: ## mirror a real folder over two troubled servers; find equal files with all processors
	@$(MAKE) -s --no-print-directory setup FOR=demo
	$(again) -s all
	@tools/with-build.sh build $(LUA) examples/mirror.lua $(ARGS)
	@tools/with-build.sh build $(LUA) examples/duplicates.lua

test: ## all specs, over epoll and over poll, and the checks of style
	@$(MAKE) -s --no-print-directory setup FOR=test
	$(again) -s all c_tests STRICT=1
	$(again) -s all c_tests STRICT=1 REACTOR=poll
	@tools/with-build.sh build/strict $(LUA) tools/test.lua --lint build/strict build/poll-strict

sanitize: ## all specs under AddressSanitizer, its leak check, and UndefinedBehaviorSanitizer
	@$(MAKE) -s --no-print-directory setup FOR=sanitize
	$(again) -s all c_tests SANITIZE=1
	$(again) -s all c_tests SANITIZE=1 REACTOR=poll
	@$(LUA) tools/test.lua build/sanitize build/poll-sanitize

bench: ## measure, beside those peers that are installed
	@$(MAKE) -s --no-print-directory setup FOR=bench
	$(again) -s all
	@tools/with-build.sh build $(LUA) bench/run.lua $(ARGS)

spec: all ## run busted alone, on SPEC=path and in any variant, with ARGS
	@tools/with-build.sh $(BUILD) $(LUA) tools/busted.lua $(ARGS) $(or $(SPEC),spec)

lint: ## luacheck, and the form of the C files
	$(LUA) tools/test.lua --lint

format: ## bring the C files into form
	find csrc spec bench examples -name '*.[ch]' -exec $(CLANG_FORMAT) -i {} +

# --- installing ------------------------------------------------------------------------------

lua_dir = $(DESTDIR)$(PREFIX)/share/lua/5.4/opero
module_dir = $(DESTDIR)$(PREFIX)/lib/lua/5.4/opero
lib_dir = $(DESTDIR)$(PREFIX)/lib
include_dir = $(DESTDIR)$(PREFIX)/include
lua_files := $(wildcard lua/opero/*.lua)

install: all ## install below PREFIX (/usr/local), DESTDIR before it
	$(INSTALL) -d '$(lua_dir)' '$(module_dir)' '$(include_dir)'
	$(INSTALL) -m 644 $(lua_files) '$(lua_dir)'
	$(INSTALL) -m 755 $(module) '$(module_dir)'
	$(INSTALL) -m 644 $(library) '$(lib_dir)'
	$(INSTALL) -m 644 csrc/opero.h '$(include_dir)'

uninstall: ## remove what install installed
	rm -rf '$(lua_dir)' '$(module_dir)'
	rm -f '$(lib_dir)/libopero.a' '$(include_dir)/opero.h'

clean: ## remove what was built, by LuaRocks too
	rm -rf build csrc/*.o opero/core.so
	@rmdir opero 2>/dev/null || true

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | sed 's/\$$\$$/$$/' | expand -t 12
