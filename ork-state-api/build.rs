//! Nothing to build: Cargo wants a build script for the `links` key, which keeps a second,
//! incompatible version of this crate out of the graph.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
