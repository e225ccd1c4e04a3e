//! Gives the library the name that its callers ask for, and keeps it loaded: what it has open must
//! not be opened once more by every caller that closes and loads it again.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libnvidia-ml.so.1");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rerun-if-changed=build.rs");
}
