# make run      sets up, builds guest and runtime, runs a busybox bundle in a virtual machine
# make test     everything: formatting, clippy, unit tests, integration tests here and in a machine whose KVM works
# make build    rt and a guest for it, in target/release
# make kernel   the tuned guest kernel (about 14 minutes of processor time, once a machine)
# make test-callers    conmon, podman, containerd and docker, with rt as their runtime
# make conformance     runc's own test suite, with rt and with runc; MODE=passes: what is known to pass, with rt (FILES=exec.bats: of these)
# make dist     one file, target/dist/rt, with kernel and initramfs inside, for any x86-64 Linux
# make image    that file in an image for the nodes of a Kubernetes cluster; IMAGE=REGISTRY/rt:VERSION names it
# make install  to PREFIX (/usr/local), below DESTDIR if set; make uninstall takes it away again
# make deb      the same as a Debian package, in target/deb
# make man      man pages and completions anew, from the definition of the command line
# make bench    what a start costs and where the time goes, with runc and crun beside it, here and in the KVM machine
# make clean    removes target; what was made once a machine stays in ~/.cache/rt
#
# Packages that are missing are installed from the distribution, and said before; APT= names another way to install.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
.PHONY: run test build rt agent guest kernel quick-guest tuned-guest bundle lint unit-test integration integration-test test-callers conformance dist image install uninstall deb man bench clean
.NOTPARALLEL:

PREFIX ?= /usr/local

triple := x86_64-unknown-linux-gnu
# CARGO_TARGET_DIR is cargo's; what rt's users and tests look for is always in target/release.
cargo_target := $(or $(CARGO_TARGET_DIR),target)
release := target/release
guest := $(release)/guest
cache := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rt

# What `rt --version` says that it was built from, where this is a repository.
commit := $(shell git describe --always --dirty --abbrev=12 2>/dev/null)
cargo_release := $(if $(commit),RT_COMMIT=$(commit)) cargo build --release --locked

build_packages := gcc libc6-dev libseccomp-dev libcap-ng-dev
deb_packages := dpkg binutils xz-utils
dist_packages := binutils zstd
image_packages := busybox-static $(if $(shell command -v podman || command -v buildah || command -v docker),,podman)
guest_packages := binutils xz-utils zstd cpio
run_packages := qemu-system-x86 busybox-static
kernel_packages := gcc libc6-dev make flex bison bc perl libelf-dev libssl-dev binutils xz-utils cpio
test_packages := $(run_packages) util-linux iproute2 iptables containernetworking-plugins wireguard-tools
caller_packages := $(test_packages) conmon podman containerd docker.io python3 python3-grpcio python3-protobuf protobuf-compiler
conformance_packages := $(test_packages) bats gawk jq gcc libc6-dev dpkg-dev procps runc
bench_packages := $(test_packages) runc crun containerd

# $(call need,PACKAGES): installs those that are missing.
define need
@missing=(); for package in $(sort $(1)); do \
  [ "$$(dpkg-query -W -f='$${db:Status-Status}' "$$package" 2>/dev/null)" = installed ] || missing+=("$$package"); \
done; \
[ $${#missing[@]} -eq 0 ] || APT='$(APT)' tests/integration/install.sh "$${missing[@]}"
endef

run: build bundle
	@[ "$$(id -u)" = 0 ] || as_root=sudo; \
	$${as_root:-} $(release)/rt run -b target/bundle > target/bundle/output; \
	host=$$(for command in 'uname -a' nproc 'free -m'; do echo "== $$command"; $$command; done); \
	awk -v host="$$host" 'BEGIN { n = split(host, lines, "\n"); for (i = 1; i <= n; i++) { if (lines[i] ~ /^== /) key = lines[i]; else on[key] = on[key] "  host   " lines[i] "\n" } } \
	  /^== / { printf "%s%s\n", on[key2], $$0; key2 = $$0; next } { print "  guest  " $$0 } END { printf "%s", on[key2] }' target/bundle/output

test:
	@tests/integration/all.sh

build: rt guest

rt:
	$(call need,$(build_packages))
	$(cargo_release) --bin rt
	@mkdir -p $(release)
	@tests/integration/place.sh $(cargo_target)/$(triple)/release/rt $(release)/rt

agent:
	$(call need,$(build_packages))
	@# Without where crates lie on this machine: 300 places in the agent name their source.
	cargo build --profile agent --locked -p rt-agent \
	  --config 'target.$(triple).rustflags=["--remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)/registry/src="]'

# The quick kernel is a matter of seconds; the tuned one is taken when this machine has one already.
guest: agent
	@if [ -e $(cache)/kernel/tuned/vmlinux ]; then $(MAKE) --no-print-directory tuned-guest KERNEL=$(cache)/kernel/tuned; \
	else $(MAKE) --no-print-directory quick-guest; fi

kernel:
	$(call need,$(kernel_packages))
	@guest/kernel/progress.sh tuned

quick-guest tuned-guest: %-guest: agent
	$(call need,$(guest_packages) $(if $(KERNEL),,$(if $(filter tuned,$*),$(kernel_packages))))
	@mkdir -p $(guest)/$*
	@kernel=$(KERNEL); kernel=$${kernel:-$$(guest/kernel/progress.sh $*)}; \
	tests/integration/place.sh "$$kernel/vmlinux" $(guest)/$*/vmlinux; \
	guest/initramfs/build.sh "$$kernel" $(cargo_target)/$(triple)/agent/rt-agent $(guest)/$*/initramfs.cpio

bundle:
	$(call need,$(run_packages))
	@tests/integration/bundle.sh target/bundle 'for command in "uname -a" nproc "free -m"; do echo "== $$command"; $$command; done'

lint:
	$(call need,$(build_packages))
	@# Each target once: a second recipe would be taken in silence.
	@! $(MAKE) --no-print-directory -n install 2>&1 >/dev/null | grep warning:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

unit-test:
	$(call need,$(build_packages))
	cargo test --locked --workspace --lib --bins
	@[ "$$(id -u)" = 0 ] || export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=sudo; \
	cargo test --locked --test jail --test guest_files

# What integration tests need; prints the test program.
integration: rt quick-guest tuned-guest
	$(call need,$(test_packages))
	cargo test --locked --test integration --test guest_files --no-run
	@mkdir -p target/test; \
	programs=$$(cargo test --locked --test integration --test guest_files --no-run --message-format short 2>&1 | sed -n 's/.*Executable.*(\(.*\))$$/\1/p'); \
	grep /integration- <<<"$$programs" > target/test/program; \
	tests/integration/place.sh "$$(grep /guest_files- <<<"$$programs")" target/test/guest_files

integration-test:
	@tests/integration/all.sh integration

# Programs that call rt where they would call runc.
test-callers: rt guest
	$(call need,$(caller_packages))
	@tests/integration/callers/all.sh

conformance: rt guest
	$(call need,$(conformance_packages))
	@tests/integration/conformance/run.sh $(or $(MODE),all) $(FILES)

bench: integration
	$(call need,$(bench_packages))
	$(cargo_release) --example boot
	@tests/integration/place.sh $(cargo_target)/$(triple)/release/examples/boot target/test/boot
	@tests/integration/all.sh bench

# What lies in target/release/guest is packed, and the tuned kernel made if it is not there.
dist: rt tuned-guest
	$(call need,$(dist_packages))
	@mkdir -p target/dist
	packaging/dist.sh $(release)/rt $(guest)/tuned target/dist/rt
	@ls -l target/dist/rt

image: dist
	$(call need,$(image_packages))
	deploy/kubernetes/image.sh $(or $(IMAGE),rt:latest)

install:
	packaging/install.sh '$(DESTDIR)' '$(PREFIX)'

uninstall:
	packaging/install.sh --remove '$(DESTDIR)' '$(PREFIX)'

deb: build
	$(call need,$(deb_packages))
	packaging/deb.sh target/deb

man:
	$(call need,$(build_packages))
	RT_PAGES=write cargo test --locked --lib cmd::pages

clean:
	rm -rf target
