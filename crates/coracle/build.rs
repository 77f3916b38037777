//! Embeds the supervisor program when `CORACLE_SUPERVISOR_BIN` names it (the Makefile builds it
//! first, static).

fn main() {
    println!("cargo:rerun-if-env-changed=CORACLE_SUPERVISOR_BIN");
    println!("cargo:rustc-check-cfg=cfg(coracle_embedded_supervisor)");
    if let Ok(path) = std::env::var("CORACLE_SUPERVISOR_BIN") {
        println!("cargo:rerun-if-changed={path}");
        println!("cargo:rustc-cfg=coracle_embedded_supervisor");
        println!("cargo:rustc-env=CORACLE_SUPERVISOR_BIN={path}");
    }
}
