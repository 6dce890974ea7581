//! Disk faults that a test switches on and off for one process. The preloaded library `faults.c`
//! injects them.

use std::path::PathBuf;
use std::process::Command;

/// Directory with the compiled fault library and with the file that selects the current fault.
pub(crate) struct Faults {
    dir: tempfile::TempDir,
}

impl Faults {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/harness/faults.c");
        // `cc` is present because the Rust toolchain links with it.
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(dir.path().join("faults.so"))
            .args([source, "-ldl"])
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&built.stderr).into_owned();
        assert!(built.status.success(), "{told}");
        let faults = Self { dir };
        faults.none();
        faults
    }

    fn word(&self) -> PathBuf {
        self.dir.path().join("word")
    }

    /// Environment variables that a program needs so that the faults apply to it.
    pub(crate) fn env(&self) -> [(&'static str, String); 2] {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        [
            ("LD_PRELOAD", text(self.dir.path().join("faults.so"))),
            ("OUTPACE_FAULTS", text(self.word())),
        ]
    }

    pub(crate) fn none(&self) {
        self.set("none");
    }

    /// Selects the fault for all later disk calls of the spool. `eio` fails synchronisation, `full`
    /// leaves no space, `slow` adds 200 ms to a synchronisation, and `none` injects nothing.
    pub(crate) fn set(&self, word: &str) {
        // A rename replaces the file atomically because the library may read it at any time.
        let beside = self.dir.path().join("beside");
        std::fs::write(&beside, word).unwrap();
        std::fs::rename(beside, self.word()).unwrap();
    }
}
