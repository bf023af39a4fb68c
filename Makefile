# dsd - one file, no recursion, no configure step. `make help` lists the targets.

B_SUFFIX := $(if $(filter address,$(SAN)),-asan)$(if $(filter thread,$(SAN)),-tsan)
B        := build$(B_SUFFIX)

prefix     ?= /usr/local
bindir     ?= $(prefix)/bin
libdir     ?= $(prefix)/lib
libexecdir ?= $(prefix)/libexec
includedir ?= $(prefix)/include
mandir     ?= $(prefix)/share/man
datadir    ?= $(prefix)/share
sysconfdir ?= /etc
unitdir    ?= $(prefix)/lib/systemd/system
userunitdir ?= $(prefix)/lib/systemd/user
sysusersdir ?= $(prefix)/lib/sysusers.d
tmpfilesdir ?= $(prefix)/lib/tmpfiles.d

VERSION := 0.1.0
CFLAGS  ?= -O2 -g
Q       := $(if $(filter 1,$(V)),,@)
say      = $(if $(filter 1,$(V)),@:,@printf '  %-6s %s\n')

# What the code relies on is not the user's to override. No contraction: a*b+c must round alike on
# every instruction set; kernels that want fused multiply-add say so. protoc-c's initialisers of
# messages with a oneof leave braces out, which -Wall would report at every use.
override CPPFLAGS += -I. -I$(B) -D_GNU_SOURCE -DDSD_VERSION='"$(VERSION)"' -MMD -MP
override CFLAGS   += -std=gnu17 -pthread -fPIC -fvisibility=hidden -ffp-contract=off -Wall -Wextra -Wshadow \
                     -Wno-missing-braces -Wvla -Wmissing-prototypes -Wstrict-prototypes -Werror=implicit-function-declaration
ifeq ($(CI),true)
override CFLAGS   += -Werror
endif
ifeq ($(SAN),address)
override CFLAGS   += -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
override LDFLAGS  += -fsanitize=address,undefined
endif
ifeq ($(SAN),thread)
override CFLAGS   += -fsanitize=thread -Wno-tsan
override LDFLAGS  += -fsanitize=thread
endif

# --- a folder is a layer, and the wildcard is the list of its files ---------------------------

objects = $(patsubst %.c,$(B)/%.o,$(filter-out $(2),$(wildcard $(1)/*.c)))

proto  := $(B)/proto/ds.pb-c.o $(call objects,proto)
shm    := $(call objects,shm)
unicode := $(B)/engine/text/unicode_data.o
grids   := $(B)/engine/format/iq_grids.o
engine := $(foreach d,engine engine/format engine/text engine/model engine/serve engine/cpu,\
          $(call objects,$(d),engine/main.c engine/text/unicode_gen.c engine/format/iq_gen.c)) $(unicode) $(grids)
daemon := $(call objects,daemon,daemon/main.c)
client := $(call objects,client)
dsctl  := $(call objects,client/dsctl)
testlib := $(call objects,tests/lib)
tests  := $(patsubst %.c,$(B)/%,$(wildcard tests/test_*.c))
benches := $(patsubst %.c,$(B)/%,$(wildcard tests/bench/*.c))
helpers := $(patsubst %.c,$(B)/%,$(wildcard tests/e2e/*.c) tests/bench/synth_gguf.c)
pages  := $(patsubst %.scd,$(B)/%,$(wildcard man/*.scd)) $(B)/man/dsd-models.7
units  := $(patsubst %.in,$(B)/%,$(wildcard systemd/*.in systemd/user/*.in))

pkg = $(shell pkg-config --libs $(1) 2>/dev/null)
proto_libs  = $(call pkg,libprotobuf-c)
client_libs = $(proto_libs)
dsctl_libs  = $(call pkg,libedit libcjson)
daemon_libs = $(call pkg,liburing libsystemd inih) $(proto_libs)
engine_libs = $(call pkg,libseccomp jansson libcjson nettle) $(proto_libs) -lm
test_libs   = $(call pkg,libcjson)

programs := $(if $(wildcard daemon/main.c),$(B)/dsd) $(if $(wildcard engine/main.c),$(B)/dsd-engine) \
            $(if $(wildcard client/dsctl/main.c),$(B)/dsctl)
library  := $(if $(wildcard client/*.c),$(B)/libds.so.0 $(B)/libds.so $(B)/libds.pc)

# --- programs, library, man pages, units ---------------------------------------------------------

.DEFAULT_GOAL := all
.PHONY: all help setup demo check check-fast check-asan check-tsan lint format bench fuzz install uninstall \
        clean tests model always
.DELETE_ON_ERROR:
.SECONDARY:

all: $(programs) $(library) $(pages) $(units)

help:
	@sed -n 's/^#: //p' Makefile

#: make               build everything into build/
#: make demo          set up this machine, fetch the default model, show dsd at work
#: make check         the same set-up, then every test and the style checks
#: make check-fast    build and run the unit tests only
#: make check-asan    the unit tests under address and undefined-behaviour sanitizers
#: make check-tsan    the tests of shared memory and threads under the thread sanitizer
#: make lint          style rules: lengths, layers, formatting
#: make format        clang-format everything in place
#: make bench         benchmarks, as ratios against a comparator or a measured limit
#: make fuzz          run the fuzz targets without limit
#: make install       install (DESTDIR, prefix); make uninstall takes it back
#: make clean         remove build directories
#: Variables: V=1 full command lines, SAN=address|thread, CC, CFLAGS, prefix, DESTDIR

$(B)/dsd: $(B)/daemon/main.o $(daemon) $(shm) $(proto)
	$(say) LINK $@
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(daemon_libs)

$(B)/dsd-engine: $(B)/engine/main.o $(engine) $(shm) $(proto)
	$(say) LINK $@
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(engine_libs)

$(B)/libds.so.0: $(client) $(shm) $(proto) client/libds.map
	$(say) LINK $@
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -shared -Wl,-soname,libds.so.0 -Wl,--version-script=client/libds.map \
		-o $@ $(client) $(shm) $(proto) $(client_libs)

$(B)/libds.so: $(B)/libds.so.0
	$(Q)ln -sf libds.so.0 $@

# Remembers the places of installation, so that what names them is made anew for others (make, then make install
# prefix=/usr). Removed before it is written: root may have made it.
$(B)/places: places := $(prefix) $(bindir) $(libdir) $(libexecdir) $(includedir) $(sysconfdir)
$(B)/places: always
	$(Q)mkdir -p $(@D)
	$(Q)echo '$(places)' | cmp -s - $@ || { rm -f $@; echo '$(places)' > $@; }

$(B)/libds.pc: client/libds.pc.in $(B)/places
	$(Q)rm -f $@
	$(Q)sed -e 's|@prefix@|$(prefix)|g' -e 's|@libdir@|$(libdir)|g' -e 's|@includedir@|$(includedir)|g' \
		-e 's|@version@|$(VERSION)|g' $< > $@

# dsctl finds the library beside itself in build/ and in ../lib once installed.
$(B)/dsctl: $(dsctl) $(proto) $(B)/libds.so
	$(say) LINK $@
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -Wl,-rpath,'$$ORIGIN:$$ORIGIN/../lib' -o $@ $(dsctl) $(proto) -L$(B) -lds \
		$(dsctl_libs) $(proto_libs) -lm

# Kernels for one instruction set live in files named after it, chosen at run time.
# Undefined behaviour is looked for in the portable kernels, their model: here it would take minutes.
ifeq ($(SAN),address)
isa_flags := -fno-sanitize=undefined
endif
$(B)/%_avx2.o: override CFLAGS += -mavx2 -mfma -mf16c $(isa_flags)
$(B)/%_avx512.o: override CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c \
                                    $(isa_flags)
$(B)/%_amx.o: override CFLAGS += -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mfma -mf16c \
                                 -mamx-tile -mamx-int8 $(isa_flags)
# gcc 12 looks up masked vector loads at twice their address under -fsanitize=address.
$(B)/engine/cpu/%.o $(B)/engine/format/superblock.o: override CFLAGS += -O3 $(if $(SAN),-fno-tree-vectorize)

$(B)/%.o: %.c | $(B)/proto/ds.pb-c.h
	$(say) CC $<
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<

$(B)/proto/ds.pb-c.o: $(B)/proto/ds.pb-c.c
	$(say) CC $<
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -w -c -o $@ $<

$(B)/proto/ds.pb-c.c $(B)/proto/ds.pb-c.h &: proto/ds.proto
	$(say) PROTO $<
	$(Q)mkdir -p $(@D)
	$(Q)protoc-c --c_out=$(B) $<

# The category table of all code points, from the Unicode data that Debian packages.
UNICODE_DATA ?= /usr/share/unicode/UnicodeData.txt
$(B)/engine/text/unicode_gen: engine/text/unicode_gen.c
	$(say) HOSTCC $<
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) -O1 -std=gnu17 -I. -o $@ $<

$(B)/engine/text/unicode_data.c: $(B)/engine/text/unicode_gen $(UNICODE_DATA)
	$(say) GEN $@
	$(Q)$< $(UNICODE_DATA) > $@

# The grids of the IQ types.
$(B)/engine/format/iq_gen: engine/format/iq_gen.c
	$(say) HOSTCC $<
	$(Q)mkdir -p $(@D)
	$(Q)$(CC) -O1 -std=gnu17 -o $@ $<

$(B)/engine/format/iq_grids.c: $(B)/engine/format/iq_gen
	$(say) GEN $@
	$(Q)$< > $@

$(unicode) $(grids): %.o: %.c
	$(say) CC $<
	$(Q)$(CC) $(CPPFLAGS) $(CFLAGS) -c -o $@ $<

$(B)/man/%: man/%.scd
	$(say) MAN $@
	$(Q)mkdir -p $(@D)
	$(Q)scdoc < $< > $@

# The tables of dsd-models(7) are the engine's own.
$(B)/man/models: $(B)/man/models.o $(engine) $(shm) $(proto)
	$(say) LINK $@
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(engine_libs)

$(B)/man/dsd-models.7: man/dsd-models.7.in $(B)/man/models
	$(say) MAN $@
	$(Q)$(B)/man/models < $< > $@.scd
	$(Q)scdoc < $@.scd > $@

$(B)/systemd/%: systemd/%.in $(B)/places
	$(say) GEN $@
	$(Q)mkdir -p $(@D)
	$(Q)rm -f $@
	$(Q)sed -e 's|@bindir@|$(bindir)|g' -e 's|@libexecdir@|$(libexecdir)|g' -e 's|@sysconfdir@|$(sysconfdir)|g' $< > $@

# --- set-up, demo ---------------------------------------------------------------------------------

# The only targets that install packages or use the network.
setup:
	@tests/setup.sh packages

model:
	@tests/setup.sh model

demo: setup
	@$(MAKE) --no-print-directory all
	@tests/setup.sh model
	@tests/demo.sh $(B)

# --- tests ----------------------------------------------------------------------------------------

# Tests of a program link what of it is no main().
$(B)/tests/test_dsctl: $(filter-out $(B)/client/dsctl/main.o,$(dsctl))
$(B)/tests/test_dsctl: test_libs = $(dsctl_libs)

$(B)/tests/test_%: $(B)/tests/test_%.o $(testlib) $(daemon) $(client) $(engine) $(shm) $(proto)
	$(say) LINK $@
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(daemon_libs) $(engine_libs) $(test_libs) -lcmocka

# Tests that start programs.
$(filter $(B)/tests/test_daemon%,$(tests)): | $(B)/dsd $(B)/dsd-engine $(B)/tests/e2e/fake_engine

$(B)/tests/bench/%: $(B)/tests/bench/%.o $(testlib) $(client) $(engine) $(shm) $(proto)
	$(say) LINK $@
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(engine_libs) $(test_libs) -lcmocka

$(B)/tests/e2e/%: $(B)/tests/e2e/%.o $(testlib) $(client) $(engine) $(shm) $(proto)
	$(say) LINK $@
	$(Q)$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(engine_libs) $(test_libs) -lcmocka

tests: all $(tests) $(helpers)

check:
	@tests/setup.sh packages check
	@$(MAKE) --no-print-directory tests
	@tests/setup.sh model
	@tests/run.sh $(B) all

check-fast: tests
	@tests/run.sh $(B) unit

check-asan:
	@$(MAKE) --no-print-directory SAN=address tests
	@tests/run.sh build-asan unit

check-tsan:
	@$(MAKE) --no-print-directory SAN=thread tests
	@tests/run.sh build-tsan thread

lint:
	@tests/lint.sh

format:
	clang-format -i $$(git ls-files '*.c' '*.h')

bench: all $(benches)
	@tests/bench/run.sh $(B)

fuzz:
	@tests/fuzz/run.sh

# --- install --------------------------------------------------------------------------------------

pages_of = $(foreach p,$(pages),$(DESTDIR)$(mandir)/man$(subst .,,$(suffix $(p)))/$(notdir $(p)))

install: all
	install -D -m 755 -t $(DESTDIR)$(bindir) $(B)/dsd $(B)/dsctl
	install -D -m 755 -t $(DESTDIR)$(libexecdir)/dsd $(B)/dsd-engine
	install -D -m 755 -t $(DESTDIR)$(libdir) $(B)/libds.so.0
	ln -sf libds.so.0 $(DESTDIR)$(libdir)/libds.so
	install -D -m 644 -t $(DESTDIR)$(libdir)/pkgconfig $(B)/libds.pc
	install -D -m 644 -t $(DESTDIR)$(includedir) client/ds.h
	install -D -m 644 -t $(DESTDIR)$(datadir)/dsd proto/ds.proto
	install -D -m 644 systemd/dsd.conf $(DESTDIR)$(sysconfdir)/dsd/dsd.conf.example
	install -D -m 644 -t $(DESTDIR)$(unitdir) $(wildcard $(B)/systemd/*.service) $(wildcard $(B)/systemd/*.socket)
	install -D -m 644 -t $(DESTDIR)$(userunitdir) $(wildcard $(B)/systemd/user/*)
	install -D -m 644 systemd/sysusers.conf $(DESTDIR)$(sysusersdir)/dsd.conf
	install -D -m 644 systemd/tmpfiles.conf $(DESTDIR)$(tmpfilesdir)/dsd.conf
	for page in $(pages); do \
		install -D -m 644 -t $(DESTDIR)$(mandir)/man$${page##*.} $$page || exit 1; done

uninstall:
	rm -f $(DESTDIR)$(bindir)/dsd $(DESTDIR)$(bindir)/dsctl $(DESTDIR)$(libdir)/libds.so* \
		$(DESTDIR)$(libdir)/pkgconfig/libds.pc $(DESTDIR)$(includedir)/ds.h \
		$(DESTDIR)$(unitdir)/dsd.service $(DESTDIR)$(unitdir)/dsd.socket \
		$(DESTDIR)$(userunitdir)/dsd.service $(DESTDIR)$(userunitdir)/dsd.socket \
		$(DESTDIR)$(sysusersdir)/dsd.conf $(DESTDIR)$(tmpfilesdir)/dsd.conf \
		$(DESTDIR)$(sysconfdir)/dsd/dsd.conf.example $(pages_of)
	rm -rf $(DESTDIR)$(libexecdir)/dsd $(DESTDIR)$(datadir)/dsd

clean:
	rm -rf build build-asan build-tsan build-fuzz

-include $(shell find $(B) -name '*.d' 2>/dev/null)
