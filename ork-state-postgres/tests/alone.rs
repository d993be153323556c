//! What needs a server for itself. It is a program of its own, since each starts its own server.

#![allow(clippy::unwrap_used, reason = "test code")]

#[allow(dead_code, reason = "`own.rs` uses the rest of it")]
mod common;
mod pages;

ork_state_conformance::own_tests_main!(&common::FIXTURE, [pages]);
