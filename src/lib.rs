//! rt: an OCI runtime that runs every container in its own lightweight virtual machine.
//!
//! The rooms depend on each other downwards only:
//! `cmd, shim -> container -> sandbox -> {share, agent, hypervisor, fsd} -> {devices, jail} -> sys`;
//! `bundle` and `config` are data that everyone may read. docs/decisions says why.

pub mod agent;
pub mod bundle;
pub mod cgroup;
pub mod check;
pub mod cmd;
pub mod config;
pub mod container;
pub mod devices;
pub mod fsd;
pub mod hypervisor;
pub mod jail;
pub mod log;
pub mod sandbox;
pub mod share;
pub mod shim;
pub mod sys;
