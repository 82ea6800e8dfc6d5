//! Integration tests: they drive the binary as a user does, and every one that runs a container boots a virtual machine.
//!
//! The same program runs on this machine and inside the KVM machine (kvm-machine.sh); all.sh builds and starts both.
//! A test reads like a shell session: a [`shell::Bundle`], a command, what came back. Whatever ran, the harness checks
//! that nothing of it is left.
//!
//! | variable | meaning |
//! |---|---|
//! | `RT_BIN` | the binary; default `target/release/rt` |
//! | `RT_TEST_PLACE` | `kvm` or `emulation`: what has to carry the guests here. Default: rt is asked |
//! | `RT_TEST_PATIENCE` | factor for all time limits; default 1 |
//! | `RT_TEST_KEEP` | not empty: bundles of failed tests are kept |

mod shell;

mod backend;
mod bad_input;
mod bench;
mod budget;
mod cgroup;
mod concurrency;
mod config;
mod console_socket;
mod crash;
mod create;
mod crio;
mod debug;
mod delete;
mod deploy;
mod dist;
mod events;
mod exec;
mod exit_code;
mod fault;
mod features;
mod file_system;
mod fixtures;
mod gc;
mod hooks;
mod id;
mod isolation;
mod kata_check;
mod kill;
mod limits;
mod list;
mod log;
mod logs;
mod machine;
mod mounts;
mod network;
mod notify;
mod oom;
mod pause;
mod pod;
mod preserve_fds;
mod process;
mod ps;
mod record;
mod signals;
mod snapshot;
mod spec;
mod start;
mod state;
mod stats;
mod streams;
mod terminal;
mod update;
mod usage;
