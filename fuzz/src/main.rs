//! The fuzz targets of `tests/fuzz` as one program for libFuzzer. `OUTPACE_FUZZ_TARGET` names the
//! target, and the seeds of the target are written to the directory `OUTPACE_FUZZ_SEEDS`.

#![no_main]

#[path = "../../tests/fuzz/targets/mod.rs"]
mod targets;

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use targets::{TARGETS, Target};

static TARGET: OnceLock<&Target> = OnceLock::new();

/// Chooses the target and writes its seeds.
fn choose() -> &'static Target {
    let name = std::env::var("OUTPACE_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!(
            "OUTPACE_FUZZ_TARGET is `{name}`; set it to one of {}",
            names.join(", ")
        );
        std::process::exit(2);
    };
    if let Ok(dir) = std::env::var("OUTPACE_FUZZ_SEEDS") {
        for (index, seed) in target.seeds.iter().enumerate() {
            std::fs::write(Path::new(&dir).join(format!("seed-{index}")), seed).unwrap();
        }
    }
    target
}

fuzz_target!(init: {
    TARGET.get_or_init(choose);
}, |data: &[u8]| {
    (TARGET.get_or_init(choose).run)(data);
});
