//! Tells the suite which compiler built it: that stands in its reports.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = Command::new(rustc).arg("--version").output().ok();
    let version = said.and_then(|output| String::from_utf8(output.stdout).ok());
    println!("cargo::rustc-env=ORK_STATE_RUSTC={}", version.as_deref().unwrap_or("unknown").trim());
}
