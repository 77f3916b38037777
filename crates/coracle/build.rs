//! Embeds the supervisor, the microVM monitor and its jailer when the environment names all of them (the
//! Makefile builds them first, static).

const PROGRAMS: [&str; 3] = ["CORACLE_SUPERVISOR_BIN", "CORACLE_VMM_BIN", "CORACLE_JAILER_BIN"];

fn main() {
    println!("cargo:rustc-check-cfg=cfg(coracle_embedded)");
    let mut named = 0;
    for program in PROGRAMS {
        println!("cargo:rerun-if-env-changed={program}");
        if let Ok(path) = std::env::var(program) {
            println!("cargo:rerun-if-changed={path}");
            println!("cargo:rustc-env={program}={path}");
            named += 1;
        }
    }
    match named {
        0 => {}
        3 => println!("cargo:rustc-cfg=coracle_embedded"),
        _ => panic!("{PROGRAMS:?} go together; only {named} are set"),
    }
}
