//! Child processes of the benchmark, pinned to a core, observed through `/proc` and killed at the
//! end.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, Stdio};

use super::Result;

/// Running child process and a reader of the lines that it prints.
pub(crate) struct Process {
    child: Child,
    lines: BufReader<Box<dyn Read + Send>>,
}

/// Output stream of a child that the benchmark reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    Stderr,
}

/// Returns true if the machine has at least two cores and `taskset` is installed.
pub(crate) fn can_pin() -> bool {
    let two = std::thread::available_parallelism().is_ok_and(|count| count.get() >= 2);
    two && Command::new("taskset")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok()
}

/// Returns a command that runs `program` on one core, or on any core if pinning is not possible.
pub(crate) fn pinned(program: &std::path::Path, core: usize) -> Command {
    if !can_pin() {
        return Command::new(program);
    }
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

/// Returns a command that runs this benchmark in another role, pinned to `core` if possible.
pub(crate) fn role(name: &str, core: usize) -> Result<Command> {
    let mut command = pinned(&std::env::current_exe()?, core);
    command.env("OUTPACE_BENCH_ROLE", name);
    Ok(command)
}

/// Runs a role to its end on a runtime with a single thread.
pub(crate) fn runtime(role: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(role)
}

impl Process {
    pub(crate) fn start(mut command: Command, output: Output) -> Result<Self> {
        let (out, err) = match output {
            Output::Stdout => (Stdio::piped(), Stdio::inherit()),
            Output::Stderr => (Stdio::null(), Stdio::piped()),
        };
        let mut child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()?;
        let source: Box<dyn Read + Send> = match (child.stdout.take(), child.stderr.take()) {
            (Some(out), _) => Box::new(out),
            (None, Some(err)) => Box::new(err),
            (None, None) => return Err("the child has no output".into()),
        };
        Ok(Self {
            child,
            lines: BufReader::new(source),
        })
    }

    /// Returns the next output line that contains `word`, or an error if the child ended first.
    pub(crate) fn expect_line(&mut self, word: &str) -> Result<String> {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line)? == 0 {
                return Err(format!("the child ended before printing `{word}`").into());
            }
            if line.contains(word) {
                return Ok(line.trim().to_owned());
            }
        }
    }

    /// Returns the CPU time of all threads of the child so far, in nanoseconds.
    pub(crate) fn cpu_nanos(&self) -> Result<f64> {
        let mut sum = 0.0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            sum += text.split(' ').next().unwrap_or_default().parse::<f64>()?;
        }
        Ok(sum)
    }

    /// Returns the resident memory of the child (`VmRSS`), in KiB.
    pub(crate) fn resident_kib(&self) -> Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .ok_or("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The error is ignored because the child may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
