//! A disk that fails when it is told to, for one process.

use std::path::PathBuf;
use std::process::Command;

/// The library that stands between a program and its disk, and the file that tells it what to do.
pub(crate) struct Faults {
    dir: tempfile::TempDir,
}

impl Faults {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/harness/faults.c");
        // Whoever links Rust has it.
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

    /// What a program has to be started with.
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

    /// From now on: `eio`, `full`, `slow` or `none`.
    pub(crate) fn set(&self, word: &str) {
        // Written whole or not at all: it is read at any time.
        let beside = self.dir.path().join("beside");
        std::fs::write(&beside, word).unwrap();
        std::fs::rename(beside, self.word()).unwrap();
    }
}
